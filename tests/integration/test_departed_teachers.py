"""What is left of a teacher's weights where they were, once its window is over: nothing."""

import pytest
import torch
from composer.core import Event
from integration.harness import Classifier, Spy, fit, loader, mlp, trainer_for
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from composer_distill import Distillation, FeatureTerm, KLDivergence, Teacher
from composer_distill.losses import FusedLinearKL

GONE_AT = 2


def bytes_of(model):
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def storages(model):
    return [StorageWeakRef(tensor.untyped_storage()) for tensor in model.state_dict().values()]


def left_in_each_batch(student, algorithm, data):
    """Return how many of each teacher's first weights are still held, batch by batch.

    The first teacher's window ends: as if they came from another device, its weights move to new
    storages.
    """

    def to_host(teacher):
        for tensor in (*teacher.model.parameters(), *teacher.model.buffers()):
            tensor.data = tensor.data.clone()

    first, second = algorithm._events._panel.sources
    held = [storages(source.teacher.model) for source in (first, second)]
    spy = Spy(
        Event.AFTER_FORWARD,
        lambda state: [sum(not ref.expired() for ref in refs) for refs in held],
    )
    options = {"train_dataloader": data, "callbacks": spy, "max_duration": "4ba"}
    trainer = trainer_for(student, algorithm, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Teacher, "to_host", to_host)
        first._device = torch.device("cuda")  # whence it leaves
        trainer.fit()
    trainer.close()
    return spy.seen, [len(refs) for refs in held]


@pytest.mark.parametrize(
    "options",
    [
        {"kd_loss_fn": KLDivergence()},
        {"kd_loss_fn": KLDivergence(), "n_teachers_to_sample": 1},
        {"kd_loss_fn": None, "feature_terms": [FeatureTerm("module.2", "2", loss=nn.MSELoss())]},
    ],
    ids=["logits", "sampled", "features"],
)
def test_nothing_holds_the_weights_of_a_teacher_that_has_left(options):
    teachers = [Teacher(mlp(1), end_dur=f"{GONE_AT}ba"), Teacher(mlp(2))]
    term = Distillation(teachers, **options)
    seen, (many, others) = left_in_each_batch(Classifier(mlp(0)), term, loader(20, 5))
    assert seen == [[many, others]] * GONE_AT + [[0, others]] * (4 - GONE_AT)


def test_nor_do_those_who_listened_to_its_head():
    language = pytest.importorskip("tests.integration.language")
    teachers = [
        Teacher(language.model("causal", seed), end_dur=end)
        for seed, end in ((1, f"{GONE_AT}ba"), (2, 1.0))
    ]
    term = Distillation(teachers, FusedLinearKL())
    data = language.counted(
        language.batches("causal"), lambda batch: int((batch["labels"] != -100).sum())
    )
    seen, (many, others) = left_in_each_batch(language.model("causal", 0), term, data)
    assert seen == [[many, others]] * GONE_AT + [[0, others]] * (4 - GONE_AT)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_its_memory_back():
    big = nn.Sequential(nn.Flatten(), nn.Linear(6, 2**18), nn.Linear(2**18, 4)).float()
    held = Spy(Event.BATCH_END, lambda state: torch.cuda.memory_allocated())
    fit(
        Classifier(mlp(0, dtype=torch.float32)),
        Distillation([Teacher(big, end_dur="2ba"), mlp(2, dtype=torch.float32)], KLDivergence()),
        train_dataloader=loader(20, 5, dtype=torch.float32),
        device="gpu",
        callbacks=held,
    )
    assert held.seen[1] - held.seen[-1] == pytest.approx(bytes_of(big), rel=0.01)
