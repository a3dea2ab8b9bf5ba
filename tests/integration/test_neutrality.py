"""What distillation leaves as it was: the run, the random streams, the batch, the outputs."""

import random

import numpy as np
import pytest
import torch
from composer.core import Event
from integration.harness import (
    N_FEATURES,
    Classifier,
    Noisy,
    Recorder,
    Spy,
    assert_differ,
    assert_same,
    batch_norm_mlp,
    dataset,
    entries_of,
    fit,
    logged,
    mlp,
    trainer_for,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence

INACTIVE = {
    "window not open yet": {"start_dur": "1000ba", "end_dur": "2000ba"},
    "window closed at once": {"end_dur": 0.0},
    "window empty": {"start_dur": "2ba", "end_dur": "2ba"},
    "weight 0": {"kd_loss_weight": 0.0, "org_loss_weight": 1.0},
    "weight scheduled to 0": {"kd_loss_weight": lambda _: 0.0, "org_loss_weight": lambda _: 1.0},
}


def shuffled():
    """Return a loader whose order is drawn from torch's global stream."""
    return DataLoader(dataset(24), batch_size=8, shuffle=True)


def streams():
    """Return the states of every global random stream on the CPU."""
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


def train(algorithms=(), **kwargs):
    """Train a student with dropout on shuffled data; return it, its streams and the Trainer."""
    student, spy = Classifier(mlp(0, dropout=0.5)), Spy(Event.BATCH_END, lambda _: streams())
    trainer = fit(
        student,
        algorithms,
        train_dataloader=shuffled(),
        max_duration="3ep",
        callbacks=spy,
        device_train_microbatch_size=4,
        **kwargs,
    )
    return student, spy.seen, trainer


@pytest.mark.parametrize("name", INACTIVE)
def test_an_inactive_term_leaves_the_run_bitwise_as_it_was(name):
    teacher = Recorder(Noisy(mlp(1)))
    plain, plain_streams, _ = train()
    student, student_streams, _ = train(Distillation(teacher, KLDivergence(), **INACTIVE[name]))
    assert_same(student, plain)
    assert student_streams == plain_streams
    assert teacher.inputs == []


@pytest.mark.parametrize("name", INACTIVE)
def test_an_inactive_term_leaves_what_composer_logs_as_it_was(name):
    _, _, plain = train()
    _, _, trainer = train(Distillation(mlp(1), KLDivergence(), **INACTIVE[name]))
    assert logged(trainer, "loss/train/total") == logged(plain, "loss/train/total")
    allowed = (
        set()
        if "window" in name
        else {
            "distillation/kd_loss_weight",
            "distillation/org_loss_weight",
        }
    )
    assert entries_of(trainer).keys() - entries_of(plain).keys() == allowed


def test_the_neutrality_tests_would_see_a_stream_that_moved():
    class Careless(Spy):
        def __init__(self):
            super().__init__(Event.AFTER_LOSS, lambda _: torch.rand(1))

    plain, _, _ = train()
    student = Classifier(mlp(0, dropout=0.5))
    fit(
        student,
        train_dataloader=shuffled(),
        max_duration="3ep",
        callbacks=Careless(),
        device_train_microbatch_size=4,
    )
    assert_differ(student, plain)


def test_an_active_teacher_that_draws_random_numbers_moves_no_stream():
    quiet, quiet_streams, _ = train(Distillation(mlp(1), KLDivergence()))
    noisy, noisy_streams, _ = train(Distillation(Noisy(mlp(1)), KLDivergence()))
    plain, plain_streams, _ = train()
    assert noisy_streams == quiet_streams == plain_streams
    assert_same(noisy, quiet)
    assert_differ(noisy, plain)


def test_a_teacher_that_seeds_the_global_streams_moves_none():
    class Seeding(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = mlp(1)

        def forward(self, inputs):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)
            return self.module(inputs)

    _, plain_streams, _ = train()
    _, student_streams, _ = train(Distillation(Seeding(), KLDivergence()))
    assert student_streams == plain_streams


def test_sampling_teachers_moves_no_stream():
    teachers = [mlp(seed) for seed in (1, 2, 3)]
    _, plain_streams, _ = train()
    term = Distillation(teachers, KLDivergence(), n_teachers_to_sample=2)
    _, student_streams, _ = train(term)
    assert student_streams == plain_streams


def test_building_and_preparing_teachers_moves_no_stream():
    def streams_when_ready(make):
        trainer_for(Classifier(mlp(0)), make()).close()
        return streams()

    def make():
        return Distillation([mlp(1), Noisy(mlp(2))], KLDivergence(), n_teachers_to_sample=1)

    assert streams_when_ready(make) == streams_when_ready(tuple)


def test_the_batch_and_the_outputs_leave_as_they_came():
    def tensors(state):
        return [state.batch[0], state.batch[1], state.outputs]

    before = Spy(Event.BEFORE_LOSS, lambda state: [(x, x.clone()) for x in tensors(state)])
    after = Spy(Event.BEFORE_BACKWARD, tensors)
    fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()), callbacks=[before, after])
    for came, left in zip(before.seen, after.seen, strict=True):
        for (tensor, value), same in zip(came, left, strict=True):
            assert same is tensor
            assert torch.equal(same, value)


def test_a_dict_batch_keeps_its_keys_and_labels():
    class Dict(Classifier):
        def forward(self, batch):
            return {"logits": self.module(batch["inputs"])}

        def loss(self, outputs, batch):
            return F.cross_entropy(outputs["logits"], batch["labels"])

    class Greedy(nn.Module):
        """A teacher that empties the mapping that it is given."""

        def __init__(self):
            super().__init__()
            self.module = mlp(1)

        def forward(self, batch):
            inputs = batch.pop("inputs")
            batch.clear()
            return self.module(inputs)

    inputs, labels = dataset(8).tensors
    data = [{"inputs": inputs, "labels": labels}] * 2
    seen = Spy(Event.BEFORE_BACKWARD, lambda state: (state.batch, dict(state.batch)))
    fit(
        Dict(mlp(0)),
        Distillation(Greedy(), KLDivergence()),
        train_dataloader=data,
        device_train_microbatch_size=8,
        callbacks=seen,
    )
    for _, batch in seen.seen:
        assert list(batch) == ["inputs", "labels"]
        torch.testing.assert_close([batch["inputs"], batch["labels"]], [inputs, labels])


KINDS = {
    "tensor": F.cross_entropy,
    "vector": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "tuple": lambda x, y: (F.cross_entropy(x, y), x.square().mean()),
    "list": lambda x, y: [F.cross_entropy(x, y), x.square().mean()],
    "dict": lambda x, y: {"ce": F.cross_entropy(x, y), "l2": x.square().mean()},
    "dict with total": lambda x, y: {"total": F.cross_entropy(x, y), "l2": x.square().mean()},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_keeps_its_kind(kind):
    loss_fn = KINDS[kind]
    spy = Spy(Event.BEFORE_BACKWARD, lambda state: state.loss)
    fit(Classifier(mlp(0), loss_fn), Distillation(mlp(1), KLDivergence()), callbacks=spy)
    original = loss_fn(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    for loss in spy.seen:
        assert type(loss) is type(original)
        if isinstance(original, dict):
            assert set(original) <= set(loss)
        if isinstance(original, torch.Tensor):
            assert loss.ndim == original.ndim


def test_teachers_are_frozen_and_in_eval_mode_whenever_they_answer():
    teacher = Recorder(batch_norm_mlp(1))
    unruly = Spy(Event.AFTER_FORWARD, lambda _: teacher.train())
    term = Distillation(teacher, KLDivergence())
    fit(Classifier(mlp(0)), term, callbacks=unruly, max_duration="2ep")
    assert len(teacher.modes) == len(unruly.seen) == 4
    assert not any(teacher.modes)
    assert not any(teacher.grad_modes)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_teachers_leave_a_run_bitwise_as_they_entered_it():
    teachers = [batch_norm_mlp(1), batch_norm_mlp(2)]
    references = [batch_norm_mlp(1), batch_norm_mlp(2)]
    fit(Classifier(mlp(0)), Distillation(teachers, KLDivergence()), max_duration="3ep")
    for teacher, reference in zip(teachers, references, strict=True):
        assert_same(teacher, reference)


def test_the_student_stays_in_training_mode():
    student = Classifier(batch_norm_mlp(0))
    modes = Spy(Event.BEFORE_BACKWARD, lambda state: state.model.training)
    fit(student, Distillation(batch_norm_mlp(1), KLDivergence()), callbacks=modes)
    assert all(modes.seen)


def test_teachers_are_kept_out_of_the_optimizer():
    teacher, student = mlp(1), Classifier(mlp(0))
    trainer = trainer_for(student, Distillation(teacher, KLDivergence()))
    trained = {id(p) for group in trainer.state.optimizers[0].param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in student.parameters()}


def tensors_in(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from tensors_in(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from tensors_in(value)


@pytest.mark.parametrize("weights_only", [False, True])
def test_teachers_are_kept_out_of_checkpoints(tmp_path, weights_only):
    teacher = mlp(1)
    paths = []
    for name, algorithms in (("plain", ()), ("distilled", Distillation(teacher, KLDivergence()))):
        trainer = trainer_for(Classifier(mlp(0)), algorithms)
        trainer.fit()
        paths.append(trainer.save_checkpoint(str(tmp_path / name), weights_only=weights_only))
        trainer.close()
    plain, distilled = (torch.load(path, weights_only=False)["state"] for path in paths)
    assert distilled["model"].keys() == plain["model"].keys()
    secrets = [value for value in teacher.state_dict().values() if value.numel() > 1]
    for tensor in tensors_in(distilled):
        assert not any(
            torch.equal(tensor, secret) for secret in secrets if tensor.shape == secret.shape
        )


def test_a_teachers_input_is_the_students_own():
    teacher, seen = (
        Recorder(mlp(1)),
        Spy(Event.BEFORE_BACKWARD, lambda state: state.batch[0].clone()),
    )
    fit(
        Classifier(mlp(0)),
        Distillation(teacher, KLDivergence()),
        callbacks=seen,
        device_train_microbatch_size=3,
    )
    assert teacher.inputs[0].shape == (3, N_FEATURES)
    assert len(teacher.inputs) == len(seen.seen) == 8
    torch.testing.assert_close(teacher.inputs, seen.seen, rtol=0, atol=0)
