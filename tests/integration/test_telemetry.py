"""What training tells beside its losses, and that telling it changes nothing."""

import logging

import pytest
import torch
from composer.core import Event
from integration.harness import (
    N_CLASSES,
    Classifier,
    Noisy,
    Recorder,
    Spy,
    assert_same,
    dataset,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    steps_of,
)
from torch import nn

from composer_distill import Distillation, EMATeacher, KLDivergence, Teacher
from composer_distill.losses import DistillationLoss
from composer_distill.terms.sampling import sample_teachers

TOLD = {
    "distillation/kl",
    "distillation/student_entropy",
    "distillation/teacher_entropy",
    "distillation/teacher_time",
}


def entropy(logits):
    return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1).mean().item()


@pytest.mark.parametrize("microbatch", [10, 3])
@pytest.mark.parametrize("distance", [KLDivergence(4.0), nn.MSELoss()], ids=["KL", "MSE"])
def test_divergence_and_entropies_are_in_nats_at_temperature_1(distance, microbatch):
    teacher, student = mlp(1), Classifier(mlp(0))
    inputs, _ = next(iter(loader()))
    mine, theirs = student.module(inputs).detach(), teacher(inputs).detach()
    trainer = fit(
        student,
        Distillation(teacher, distance),
        max_duration="1ba",
        device_train_microbatch_size=microbatch,
    )
    expected = {
        "kl": forward_kl(1.0)(mine, theirs).item(),
        "student_entropy": entropy(mine),
        "teacher_entropy": entropy(theirs),
    }
    for name, value in expected.items():
        assert logged(trainer, f"distillation/{name}") == pytest.approx([value], rel=1e-4), name


@pytest.mark.parametrize("microbatch", [10, 4])
def test_each_of_several_teachers_has_its_own_loss(microbatch):
    teachers, student = [mlp(1), mlp(2)], Classifier(mlp(0))
    inputs, _ = next(iter(loader()))
    expected = [
        forward_kl(2.0)(student.module(inputs).detach(), t(inputs).detach()) for t in teachers
    ]
    trainer = fit(
        student,
        Distillation(teachers, KLDivergence(2.0)),
        max_duration="1ba",
        device_train_microbatch_size=microbatch,
    )
    for index, value in enumerate(expected):
        name = f"distillation/kd_loss/teacher_{index}"
        assert logged(trainer, name) == pytest.approx([value.item()], rel=1e-4)


def test_a_teacher_that_was_not_drawn_has_no_loss_in_that_batch():
    teachers = [mlp(seed) for seed in (1, 2, 3)]
    term = Distillation(teachers, KLDivergence(2.0), n_teachers_to_sample=1)
    trainer = fit(Classifier(mlp(0)), term, max_duration="4ep")
    drawn = [sample_teachers([1.0] * 3, 1, 0, batch)[0][0] for batch in range(8)]
    for index in range(3):
        expected = [batch for batch, i in enumerate(drawn) if i == index]
        assert steps_of(trainer, f"distillation/kd_loss/teacher_{index}") == expected


def test_the_loss_of_a_teacher_that_answers_alone_is_measured_once():
    calls = []

    def distance(student, teacher):
        calls.append(len(student))
        return forward_kl()(student, teacher)

    term = Distillation([mlp(1), mlp(2)], distance, n_teachers_to_sample=1)
    trainer = fit(Classifier(mlp(0)), term, max_duration="1ba")
    (drawn, _), *_ = sample_teachers([1.0] * 2, 1, 0, 0)
    assert calls == [10]
    assert logged(trainer, f"distillation/kd_loss/teacher_{drawn}") == pytest.approx(
        logged(trainer, "loss/train/kd")
    )


class Clock:
    """Gains ``tick`` seconds at each look."""

    def __init__(self, tick):
        self.now, self.tick = 0.0, tick

    def perf_counter(self):
        self.now += self.tick
        return self.now


@pytest.mark.parametrize(("tick", "microbatch"), [(1e-6, 10), (1e-6, 5), (1e3, 10)])
def test_the_time_that_teachers_take_is_a_share_of_the_batch(tick, microbatch, monkeypatch):
    monkeypatch.setattr("composer_distill.teachers.stopwatch.time", Clock(tick))
    batches = Spy(Event.BATCH_END, lambda state: state.timestamp.batch_wct.total_seconds())
    trainer = fit(
        Classifier(mlp(0)),
        Distillation([mlp(1), mlp(2)], KLDivergence()),
        max_duration="2ep",
        callbacks=batches,
        device_train_microbatch_size=microbatch,
    )
    answers = 2 * 10 // microbatch
    expected = [min(1.0, answers * tick / seconds) for seconds in batches.seen]
    assert logged(trainer, "distillation/teacher_time") == pytest.approx(expected, rel=1e-4)
    assert len(expected) == 4


def test_telemetry_can_be_turned_off():
    trainer = fit(
        Classifier(mlp(0)), Distillation([mlp(1), mlp(2)], KLDivergence(), telemetry=False)
    )
    names = {name for name in entries_of(trainer) if name.startswith(("distillation", "loss/"))}
    assert names == {
        "loss/train/total",
        "loss/train/kd",
        "loss/train/org",
        "distillation/agreement",
        "distillation/kd_loss_weight",
        "distillation/org_loss_weight",
    }


@pytest.mark.parametrize("telemetry", [True, False])
@pytest.mark.parametrize("needs", [True, False])
def test_a_loss_gets_labels_where_it_needs_them_and_only_there(telemetry, needs):
    class Labelled(DistillationLoss):
        needs_labels = needs

        def compute(self, student, teacher, mask, labels):
            seen.append(labels is not None)
            return (student - teacher).square().mean()

    seen = []
    term = Distillation(mlp(1), Labelled(), telemetry=telemetry)
    fit(Classifier(mlp(0)), term, max_duration="8ba")  # more than it takes to judge a teacher
    assert seen == [needs] * 8


def noisy_distance(student, teacher):
    """A distance on a random projection: it draws from torch's global stream."""
    projection = torch.randn(N_CLASSES, 3, dtype=student.dtype)
    return ((student - teacher) @ projection).square().mean()


@pytest.mark.parametrize("distance", [KLDivergence(2.0), noisy_distance], ids=["KL", "drawing"])
def test_telemetry_changes_no_bit_of_the_training(distance):
    def trained(telemetry):
        teachers = [Noisy(mlp(1)), mlp(2), mlp(3)]
        term = Distillation(teachers, distance, 0.05, n_teachers_to_sample=2, telemetry=telemetry)
        student = Classifier(mlp(0, dropout=0.5))
        return fit(student, term, max_duration="3ep", device_train_microbatch_size=5)

    with_it, without = trained(True), trained(False)
    assert_same(with_it.state.model, without.state.model)
    for name in ("loss/train/total", "loss/train/kd", "loss/train/org", "distillation/agreement"):
        assert logged(with_it, name) == logged(without, name), name


def test_a_teacher_answers_once_a_microbatch_with_telemetry_too():
    teacher = Recorder(mlp(1))
    fit(Classifier(mlp(0)), Distillation(teacher, KLDivergence()), device_train_microbatch_size=5)
    assert len(teacher.inputs) == 4


class Knowing(nn.Module):
    """A teacher that knows the labels of the data, but for a shift of its classes."""

    def __init__(self, shift):
        super().__init__()
        inputs, self.targets = dataset(20).tensors
        self.inputs, self.shift = inputs, shift

    def forward(self, inputs):
        rows = (inputs[:, None] == self.inputs[None]).all(-1).int().argmax(-1)
        right = nn.functional.one_hot((self.targets[rows] + self.shift) % N_CLASSES, N_CLASSES)
        return 5.0 * right.double()


def warnings_of(caplog, teachers, max_duration="10ep"):
    with caplog.at_level(logging.WARNING, logger="composer_distill"):
        fit(
            Classifier(mlp(0)),
            Distillation(teachers, KLDivergence()),
            max_duration=max_duration,
            device_train_microbatch_size=5,
        )
    return [text for text in caplog.messages if "no better than chance" in text]


def test_a_teacher_that_knows_no_labels_is_warned_of_once_and_early(caplog):
    told = warnings_of(caplog, [Knowing(0), Knowing(1)])
    assert len(told) == 1
    assert told[0].startswith("teacher 1 (Knowing)")


def test_a_teacher_that_knows_the_labels_is_not_warned_of(caplog):
    assert warnings_of(caplog, Knowing(0)) == []


def test_what_is_made_of_the_student_is_not_warned_of(caplog):
    assert len(warnings_of(caplog, mlp(0), max_duration="6ba")) == 1  # it knows no more than that
    caplog.clear()
    assert warnings_of(caplog, EMATeacher(decay=0.9999, warmup=0)) == []


def test_the_warning_comes_within_the_first_batches(caplog):
    assert len(warnings_of(caplog, Knowing(1), max_duration="6ba")) == 1


def test_labels_that_weigh_nothing_are_not_read(caplog):
    with caplog.at_level(logging.WARNING, logger="composer_distill"):
        term = Distillation(Knowing(1), KLDivergence(), 1.0, 0.0)
        fit(Classifier(mlp(0)), term, max_duration="10ep")
    assert "chance" not in caplog.text


@pytest.mark.parametrize("microbatch", [3, 10])
def test_a_teacher_that_returns_probabilities_is_warned_of_once(caplog, microbatch):
    softmaxed = nn.Sequential(mlp(1), nn.Softmax(-1))
    with caplog.at_level(logging.WARNING, logger="composer_distill"):
        term = Distillation([mlp(2), softmaxed], KLDivergence())
        fit(
            Classifier(mlp(0)),
            term,
            max_duration="3ep",
            device_train_microbatch_size=microbatch,
        )
    told = [text for text in caplog.messages if "as probabilities do" in text]
    assert len(told) == 1
    assert told[0].startswith("teacher 1 (Sequential)")
    assert "output_fn=torch.log" in told[0]


def test_a_loss_of_probabilities_on_both_sides_is_not_warned_of(caplog):
    def softmax(outputs):
        return outputs.softmax(-1)

    with caplog.at_level(logging.WARNING, logger="composer_distill"):
        teacher = Teacher(mlp(1), output_fn=softmax)
        term = Distillation(teacher, nn.MSELoss(), student_output_fn=softmax)
        fit(Classifier(mlp(0)), term)
    assert "as probabilities do" not in caplog.text


def test_values_are_told_for_active_batches_alone():
    term = Distillation(mlp(1), KLDivergence(), start_dur="1ba", end_dur="3ba")
    trainer = fit(Classifier(mlp(0)), term, max_duration="2ep")
    for name in TOLD:
        assert steps_of(trainer, name) == [1, 2], name
