"""A student that runs out of memory: Composer halves its microbatches, and nothing counts twice.

Teachers that do are in ``test_failures.py``, and on one of two processes in ``test_processes.py``.
"""

import pytest
from integration.harness import assert_close, entries_of, logged, trainer_for
from integration.test_processes import measured
from on_policy.by_hand import batches, loader, student

from composer_distill import Distillation, FeatureTerm, KLDivergence, OnPolicy
from composer_distill.losses import FusedLinearKL, HiddenMSE

LIMIT, BATCHES = 1, 3
PLACES = ["before the forward", "behind the forward", "in the backward"]
pytestmark = pytest.mark.filterwarnings("ignore:CUDA out of memory")


@pytest.fixture(autouse=True)
def auto_on_cpu(monkeypatch):
    """Let Composer look for a microbatch size on the CPU, which it refuses of itself."""
    monkeypatch.setattr(
        "composer.trainer.trainer._is_auto_microbatching", lambda size, device: size == "auto"
    )


class Memory:
    """Makes a student run out of it where a microbatch has more than ``LIMIT`` texts."""

    def __init__(self, model, place):
        self.failures, self.rows, self.place = 0, 0, place
        self.forward, model.forward = model.forward, self.run
        # of the embedding, tied to the head: the last gradient of a backward
        next(model.parameters()).register_hook(lambda gradient: self.use("in the backward"))

    def run(self, batch):
        self.rows = len(batch["input_ids"])
        self.use("before the forward")
        outputs = self.forward(batch)
        self.use("behind the forward")
        return outputs

    def use(self, place):
        if place == self.place and self.rows > LIMIT:
            self.failures += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")


def algorithms(kind, written):
    """What is tried; texts that the student writes are noted."""
    teacher = student(seed=2)
    if kind == "logits":
        return [Distillation([teacher, student(seed=3)], KLDivergence(2.0))]
    if kind == "fused":
        return [Distillation(teacher, FusedLinearKL(2.0))]
    if kind == "features":
        layer = FeatureTerm("transformer.h.0", loss=HiddenMSE(), projector="linear")
        return [Distillation(teacher, KLDivergence(2.0), feature_terms=[layer])]

    def writes(model, prompts, mask, sampling):
        written.append(prompts.clone())
        return prompts[:, :1].repeat(1, 3)

    on_policy = OnPolicy(1.0, max_new_tokens=3, generate_fn=writes)
    return [on_policy, Distillation(teacher, KLDivergence(2.0))]


def train(kind, size, place=None):
    """Return the student, the log, the failures and the texts."""
    written, model = [], student(seed=1)
    memory = Memory(model, place)
    trainer = trainer_for(
        model,
        algorithms(kind, written),
        train_dataloader=loader(batches(BATCHES)),
        device_train_microbatch_size=size,
    )
    trainer.fit()
    trainer.close()
    assert trainer.state.device_train_microbatch_size == LIMIT
    return trainer, memory.failures, written


@pytest.mark.parametrize("kind", ["logits", "fused", "features", "on policy"])
@pytest.mark.parametrize("place", PLACES)
def test_a_student_out_of_memory_trains_as_if_its_microbatches_had_been_small(kind, place):
    retried, failures, texts = train(kind, "auto", place)
    small, none, same = train(kind, LIMIT)
    assert (failures, none) == (2, 0)  # of 4 texts and of 2
    assert_close(retried.state.model, small.state.model)
    names = [name for name in entries_of(small) if measured(name)]
    assert "loss/train/kd" in names
    for name in names:
        assert len(logged(retried, name)) == BATCHES
        assert logged(retried, name) == pytest.approx(logged(small, name), rel=1e-6), name
    assert len(texts) == len(same) == (BATCHES if kind == "on policy" else 0)  # written once
