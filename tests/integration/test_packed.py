"""Texts packed into one row: the teacher reads over their borders where the student does.

A few architectures by default; ``EVERY_ARCHITECTURE=1`` walks through all that can be built small.
"""

import copy
import inspect
import os

import pytest
import torch
from composer.core import DataSpec
from composer.models import ComposerModel, HuggingFaceModel
from torch.utils.data import DataLoader

from composer_distill import (
    CachedTeacher,
    Distillation,
    EMATeacher,
    FeatureTerm,
    KLDivergence,
    cache_teacher,
)
from composer_distill.losses import FusedLinearKL, HiddenMSE
from composer_distill.teachers.packed import holds_packed, reads_over_borders

transformers = pytest.importorskip("transformers")
harness = pytest.importorskip("tests.integration.harness")
architectures = pytest.importorskip("tests.students.architectures")

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers' models

EVERY = os.environ.get("EVERY_ARCHITECTURE") == "1"
# What keeps texts apart; what does so in training whatever it is told; what never does
SAMPLE = "llama qwen3 gpt_neox gemma2 cohere2 falcon gpt2 mamba minimax"
# What transformers itself can't train like this, or what writes into its own position_ids
NOT_WALKED = ("reformer", "xglm")
CAUSAL = [
    name
    for kind, name in architectures.walked(True)
    if kind == "causal" and name not in NOT_WALKED and (EVERY or name in SAMPLE.split())
]
PLACES = torch.cat([torch.arange(5), torch.arange(7)])
IDS = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))


def model(name, seed=0, *, use_cache=None):
    """A small model without noise, its weights far from their first ones."""
    made = architectures.tiny("causal", name)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for weight in made.parameters() if seed else ():
            weight.add_(0.1 * torch.randn_like(weight))
    for module in made.modules():
        for owner in (module, getattr(module, "config", None)):
            for option, value in list(getattr(owner, "__dict__", {}).items()):
                if isinstance(value, float) and ("drop" in option or "jitter" in option):
                    setattr(owner, option, 0.0)
            if use_cache is not None and hasattr(owner, "use_cache"):
                owner.use_cache = use_cache
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return made


def batches(rows=IDS, *, masked=False, **others):
    samples = [{"input_ids": row, "position_ids": PLACES, "labels": row} for row in rows]
    if masked:
        samples = [sample | {"attention_mask": torch.ones_like(PLACES)} for sample in samples]
    loader = DataLoader(
        samples,
        batch_size=4,
        collate_fn=lambda found: torch.utils.data.default_collate(found) | others,
    )
    return DataSpec(loader, get_num_samples_in_batch=lambda batch: len(batch["input_ids"]))


def distilled(student, teachers, loss=None, *, data=None, evaluates=False, features=(), **options):
    """Train without moving a weight, and return what was logged."""
    loss = KLDivergence(temperature=1.0) if loss is None else loss
    term = Distillation(
        teachers, loss, 1.0, 0.0, eval_teachers=evaluates, feature_terms=list(features)
    )
    trainer = harness.fit(
        student if isinstance(student, ComposerModel) else HuggingFaceModel(student),
        term,
        train_dataloader=batches() if data is None else data,
        max_duration="1ba",
        lr=0.0,
        **options,
    )
    return {name: values[-1][1] for name, values in harness.entries_of(trainer).items()}


def is_none(log, name="loss/train/kd"):
    return log[name] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("setting", ["as it comes", "no cache", "recomputed"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_model_and_its_copy_agree(name, setting):
    student = model(name, use_cache=False if setting == "no cache" else None)
    if setting == "recomputed":
        if not student.supports_gradient_checkpointing or name == "recurrent_gemma":
            pytest.skip("transformers does not recompute it")
        student.gradient_checkpointing_enable({"use_reentrant": False})
    log = distilled(student, copy.deepcopy(student))
    assert is_none(log)
    assert log["distillation/agreement"] == 1.0


def answer(student, ids, **others):
    known = inspect.signature(student.forward).parameters
    given = {"input_ids": ids, "position_ids": PLACES.repeat(len(ids), 1), **others}
    with torch.no_grad():
        return student(**{name: value for name, value in given.items() if name in known})


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", [name for name in CAUSAL if name != "minimax"])
def test_who_reads_over_borders_is_known(name, use_cache, trains):
    """By what becomes of a row's second text when its first one is another."""
    student = model(name, use_cache=use_cache).train(trains)
    other = IDS.clone()
    other[:, :5] = (IDS[:, :5] + 1) % 61 + 3
    first, second = answer(student, IDS), answer(student, other)
    moved = (first.logits - second.logits).abs().amax((0, 2))
    batch = {"input_ids": IDS, "position_ids": PLACES.repeat(4, 1)}
    reads = reads_over_borders(HuggingFaceModel(student).train(trains), batch, first)
    assert reads is bool(moved[5:].max() > 1e-3 * moved[:5].max())


def by_hand(student, teacher, over):
    """The KL where both read a row as one text, whose places are counted twice, or each text."""
    answers = []
    for each in (student, teacher):
        if over:
            logits = answer(each, IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
        else:
            with torch.no_grad():
                logits = torch.cat([each(IDS[:, :5]).logits, each(IDS[:, 5:]).logits], 1)
        answers.append(logits[:, :-1].double().log_softmax(-1))
    own, target = answers
    return (target.exp() * (target - own)).sum(-1).mean().item()


@pytest.mark.parametrize(
    ("name", "use_cache", "over"),
    [
        ("llama", True, True),
        ("llama", False, False),
        ("gemma2", True, False),  # makes no cache in training
        ("gpt2", False, True),  # knows no texts in a row
        ("mamba", False, True),
    ],
)
@pytest.mark.parametrize("other", ["qwen2", "gemma2"])
def test_what_a_teacher_answers_is_what_it_answers_to_the_texts_as_the_student_reads_them(
    name, use_cache, over, other, caplog
):
    student, teacher = model(name, use_cache=use_cache), model(other, 1)
    expected = by_hand(student, teacher, over)
    for teachers in (teacher, HuggingFaceModel(copy.deepcopy(teacher))):
        log = distilled(copy.deepcopy(student), teachers)
        assert log["loss/train/kd"] == pytest.approx(expected, rel=1e-4)
    assert "begin anew" not in caplog.text


class Wrapped(ComposerModel):
    """A user's own class: nobody tells its model whether to make a cache."""

    def __init__(self, inner):
        super().__init__()
        self.model = inner

    def forward(self, batch):
        return self.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"])

    def loss(self, outputs, batch):
        return outputs.logits.mean()


@pytest.mark.parametrize("teacher", ["falcon", "a class of the user"])
def test_a_teacher_that_can_not_read_as_the_student_does_is_told_of(teacher, caplog):
    teacher = model("falcon") if teacher == "falcon" else Wrapped(model("llama"))
    distilled(model("llama", use_cache=False), teacher)
    assert caplog.text.count("The student keeps such texts apart, and this teacher reads over") == 1
    caplog.clear()
    distilled(model("llama"), copy.deepcopy(teacher))
    distilled(model("llama", use_cache=False), teacher, data=batches(masked=True))
    assert "begin anew" not in caplog.text


def test_two_of_the_users_own_class_agree():
    student = Wrapped(model("llama"))
    assert is_none(distilled(student, copy.deepcopy(student)))


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_fused_head_features_followers_and_evaluations_read_as_the_student_does(name, use_cache):
    student = model(name, use_cache=use_cache)
    assert is_none(distilled(student, copy.deepcopy(student), FusedLinearKL(temperature=1.0)))
    assert is_none(distilled(student, EMATeacher()))
    layer = "hidden_states.3"
    log = distilled(
        student,
        copy.deepcopy(student),
        features=[FeatureTerm(layer, layer, loss=HiddenMSE())],
        evaluates=True,
        eval_dataloader=batches(),
        eval_interval="1ba",
    )
    assert is_none(log)
    assert is_none(log, f"distillation/features/{layer}")
    assert is_none(log, "metrics/eval/teacher_kl")


@pytest.mark.parametrize("tuples", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_the_batch_may_say_whether_a_cache_is_made(given, tuples):
    for name in ("llama", "gemma2"):
        student = model(name, use_cache=not given)
        teacher = copy.deepcopy(student)
        student.config.return_dict = not tuples
        assert is_none(distilled(student, teacher, data=batches(use_cache=given)))


@pytest.mark.parametrize("use_cache", [True, False])
def test_cached_answers_keep_texts_apart_and_say_so(use_cache, tmp_path, caplog):
    student = model("llama", use_cache=use_cache)
    cache_teacher(HuggingFaceModel(copy.deepcopy(student)), batches(), tmp_path / "answers")
    log = distilled(student, CachedTeacher(tmp_path / "answers"))
    assert (log["loss/train/kd"] > 0.1) is use_cache
    assert ("use_cache = False" in caplog.text) is use_cache


def test_a_mask_of_ones_gives_cached_answers_to_a_student_that_keeps_no_texts_apart(
    tmp_path, caplog
):
    student, teacher = model("gpt2"), model("llama")
    for name, masked in (("apart", False), ("as one", True)):
        folder, data = tmp_path / name, batches(masked=masked)
        cache_teacher(HuggingFaceModel(copy.deepcopy(teacher)), data, folder)
        log = distilled(copy.deepcopy(student), CachedTeacher(folder), data=data)
        right = log["loss/train/kd"] == pytest.approx(by_hand(student, teacher, True), rel=1e-4)
        assert right is masked
        assert ("attention_mask of ones" in caplog.text) is not masked
        caplog.clear()


@pytest.mark.parametrize("masked", [True, False])
def test_answers_to_packed_texts_are_found_by_whether_a_mask_was_given(masked, tmp_path):
    student, folder = model("llama", use_cache=False), tmp_path / "answers"
    cache_teacher(HuggingFaceModel(copy.deepcopy(student)), batches(masked=masked), folder)
    assert is_none(distilled(student, CachedTeacher(folder), data=batches(masked=masked)))
    with pytest.raises(ValueError, match="4 of the 4 samples .* packed texts with a mask or"):
        distilled(student, CachedTeacher(folder), data=batches(masked=not masked))


def test_only_a_row_of_several_texts_without_a_mask_is_asked_about():
    student, (batch,) = model("llama"), batches().dataloader
    assert reads_over_borders(student, batch)
    assert reads_over_borders(student, (batch, batch["labels"]))
    assert holds_packed((batch, batch["labels"]))
    assert holds_packed(batch)
    assert not holds_packed({"position_ids": torch.arange(5)[None]})
    assert not reads_over_borders(student, batch | {"attention_mask": batch["input_ids"]})
    assert not reads_over_borders(student, batch | {"use_cache": False})
    assert not reads_over_borders(student, batch["input_ids"])
    assert not reads_over_borders(torch.nn.Linear(2, 2), batch)


@pytest.mark.parametrize("use_cache", [True, False])
def test_flash_attention_keeps_the_texts_of_a_row_apart_that_is_alone(use_cache):
    student, (batch,) = model("llama", use_cache=use_cache), batches().dataloader
    student.config._attn_implementation = "flash_attention_2"
    assert reads_over_borders(student, batch)
    assert not reads_over_borders(student, {key: value[:1] for key, value in batch.items()})
