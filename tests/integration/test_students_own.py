"""Teachers that are made of the student, and teachers with windows of their own, in Trainers."""

import copy

import pytest
import torch
from composer.algorithms import SAM
from composer.core import Event, Time
from composer.models import ComposerClassifier
from integration.harness import (
    LEARNING_RATE,
    N_CLASSES,
    Classifier,
    Recorder,
    Spy,
    assert_close,
    assert_same,
    batch_norm_mlp,
    batches_of,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    steps_of,
    weights,
)
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, EMATeacher, KLDivergence, Snapshot, Teacher


def watched(teacher, student, others=(), **kwargs):
    """Train; return the Trainer, and the student's and the teacher's weights after each batch."""
    spy = Spy(
        Event.BATCH_END,
        lambda state: (weights(state.model.module), weights(teacher.model.module)),
    )
    term = Distillation(teacher, forward_kl(), 0.5, 0.5)
    terms = [term, *others]
    trainer = fit(student, terms, train_dataloader=loader(40, 5), callbacks=spy, **kwargs)
    return trainer, *zip(*spy.seen, strict=True)


@pytest.mark.parametrize(("decay", "every", "warmup"), [(0.9, 1, 0), (0.8, 2, 0), (0.9, 1, 4)])
def test_a_moving_average_is_that_of_a_loop(decay, every, warmup):
    student = Classifier(batch_norm_mlp(0))
    first = weights(student.module)
    teacher = EMATeacher(decay=decay, update_every=f"{every}ba", warmup=warmup)
    _, students, teachers = watched(teacher, student)

    mean, updates = first, 0
    buffers = dict(student.module.named_buffers())
    for batch, (now, found) in enumerate(zip(students, teachers, strict=True), start=1):
        if batch % every == 0:
            kept = min(decay, (1 + updates) / (warmup + updates)) if warmup else decay
            mean = {
                name: now[name] if name in buffers else kept * mean[name] + (1 - kept) * now[name]
                for name in now
            }
            updates += 1
        for name in mean:
            torch.testing.assert_close(found[name], mean[name], rtol=1e-12, atol=1e-12)
    assert updates == 8 // every


@pytest.mark.filterwarnings("ignore:SAM has known issues")
@pytest.mark.parametrize("closure", ["SAM", "LBFGS"])
def test_an_optimizer_with_closures_moves_the_average_once_a_batch(closure):
    student, teacher = Classifier(mlp(0)), EMATeacher(decay=0.9)
    mean = weights(student.module)
    if closure == "SAM":
        _, students, teachers = watched(teacher, student, others=[SAM(rho=0.05)])
    else:
        optimizer = torch.optim.LBFGS(student.parameters(), lr=0.1, max_iter=3)
        _, students, teachers = watched(
            teacher, student, optimizers=optimizer, device_train_microbatch_size=2
        )
    for now, found in zip(students, teachers, strict=True):
        mean = {name: 0.9 * mean[name] + 0.1 * now[name] for name in mean}
        for name in mean:
            torch.testing.assert_close(found[name], mean[name], rtol=1e-12, atol=1e-12)


def test_a_student_taught_by_its_moving_average_is_that_of_a_loop_by_hand():
    student, kl = mlp(0), forward_kl()
    parameters = list(student.parameters())
    mean = copy.deepcopy(student).requires_grad_(False)
    trained = fit(
        Classifier(copy.deepcopy(student)),
        Distillation(EMATeacher(decay=0.9), kl, 0.5, 0.5),
        train_dataloader=loader(40, 5),
        device_train_microbatch_size=2,
    )
    for inputs, targets in batches_of(loader(40, 5)):
        logits = student(inputs)
        loss = 0.5 * F.cross_entropy(logits, targets) + 0.5 * kl(logits, mean(inputs))
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for own, old, gradient in zip(parameters, mean.parameters(), gradients, strict=True):
                own.sub_(LEARNING_RATE * gradient)
                old.mul_(0.9).add_(own, alpha=0.1)
    assert_close(trained.state.model.module, student)
    assert logged(trained, "loss/train/kd")[0] == pytest.approx(0.0, abs=1e-12)
    assert logged(trained, "loss/train/kd")[-1] > 1e-4


def test_the_average_is_frozen_in_eval_mode_and_outside_the_student():
    teacher = EMATeacher(decay=0.9)
    student = Classifier(mlp(0, dropout=0.5))
    names = student.state_dict().keys()
    trainer, _, _ = watched(teacher, student)
    assert trainer.state.model.state_dict().keys() == names
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    ours = {parameter.data_ptr() for parameter in teacher.model.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in student.parameters())


def test_an_average_with_weight_0_leaves_the_run_as_it_was():
    plain = fit(Classifier(mlp(0, dropout=0.5)), train_dataloader=loader(40, 5))
    term = Distillation(EMATeacher(), forward_kl(), 0.0, 1.0)
    assert_same(
        fit(Classifier(mlp(0, dropout=0.5)), term, train_dataloader=loader(40, 5)).state.model,
        plain.state.model,
    )


def test_a_snapshot_is_the_student_at_its_start():
    teacher = Snapshot(start_dur="3ba")
    trainer, students, teachers = watched(teacher, Classifier(batch_norm_mlp(0)))
    for found in teachers[2:]:
        assert all(torch.equal(found[name], students[2][name]) for name in found)
    assert steps_of(trainer, "loss/train/kd") == [3, 4, 5, 6, 7]

    plain = Spy(Event.BATCH_END, lambda state: weights(state.model.module))
    fit(Classifier(batch_norm_mlp(0)), train_dataloader=loader(40, 5), callbacks=plain)
    for batch in range(3):
        assert all(torch.equal(plain.seen[batch][n], students[batch][n]) for n in plain.seen[batch])


def test_a_snapshot_waits_for_the_window_of_all():
    teacher = Snapshot(start_dur="1ba")
    spy = Spy(
        Event.BATCH_END,
        lambda state: (weights(state.model.module), weights(teacher.model.module)),
    )
    term = Distillation(teacher, forward_kl(), 0.5, 0.5, start_dur="3ba")
    fit(Classifier(mlp(0)), term, train_dataloader=loader(40, 5), callbacks=spy)
    students, teachers = zip(*spy.seen, strict=True)
    for found in teachers[2:]:
        assert all(torch.equal(found[name], students[2][name]) for name in found)


class Turned(nn.Module):
    """A linear map of complex numbers, of which the sizes are the logits."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.cdouble))

    def forward(self, inputs):
        return (inputs.to(torch.cdouble) @ self.weight).abs()


def test_complex_weights_are_averaged_too():
    student = Classifier(Turned())
    mean = weights(student.module)["weight"]
    _, students, teachers = watched(EMATeacher(decay=0.9), student)
    for now, found in zip(students, teachers, strict=True):
        mean = 0.9 * mean + 0.1 * now["weight"]
        torch.testing.assert_close(found["weight"], mean, rtol=1e-12, atol=1e-12)
    assert not torch.equal(students[-1]["weight"], mean)


def test_an_average_stands_in_one_instance_alone():
    teacher = EMATeacher(decay=0.9)
    terms = [Distillation(teacher, forward_kl()), Distillation(teacher, forward_kl())]
    with pytest.raises(
        ValueError, match=r"teacher 0 \(EMA of the student\): one EMATeacher stands"
    ):
        fit(Classifier(mlp(0)), terms)
    shared = mlp(1)
    terms = [Distillation(shared, forward_kl()), Distillation(shared, forward_kl())]
    fit(Classifier(mlp(0)), terms)  # a model that nothing moves may stand in both


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"decay": 1.5}, "decay must be at least 0 and below 1, got 1.5"),
        ({"decay": 1.0}, "got 1.0. Use 0.999, or Snapshot"),
        ({"update_every": "1ep"}, "a number of batches such as '1ba'.*got '1ep'"),
        ({"update_every": Time.from_timestring("0ba")}, "at least one"),
        ({"warmup": -1}, "warmup must be a number of updates"),
        ({"start_dur": 2.0}, "start_dur as a fraction"),
    ],
)
def test_rules_that_can_not_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        EMATeacher(**arguments)


class Counted(Recorder):
    """Counts the batches that it has answered."""

    @property
    def count(self):
        return len(self.inputs)


def test_each_teacher_answers_in_its_own_window_and_the_shares_are_of_those_that_do():
    early, late, kl = Counted(mlp(1)), Counted(mlp(2)), forward_kl()
    teachers = [
        Teacher(early, end_dur="3ba", weight=3.0),
        Teacher(late, start_dur="2ba", end_dur=0.75),
    ]
    trained = fit(
        Classifier(mlp(0)),
        Distillation(teachers, KLDivergence(1.0), 0.5, 0.5, combine="probabilities"),
        train_dataloader=loader(40, 5),
    )
    student = mlp(0)
    for batch, (inputs, targets) in enumerate(batches_of(loader(40, 5))):
        logits = student(inputs)
        loss = F.cross_entropy(logits, targets)
        asked = [
            *([(3.0, mlp(1))] if batch < 3 else []),
            *([(1.0, mlp(2))] if 2 <= batch < 6 else []),
        ]
        if asked:
            total = sum(weight for weight, _ in asked)
            kls = [weight / total * kl(logits, m(inputs).detach()) for weight, m in asked]
            loss = 0.5 * loss + 0.5 * sum(kls)
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for own, gradient in zip(student.parameters(), gradients, strict=True):
                own.sub_(LEARNING_RATE * gradient)
    assert_close(trained.state.model.module, student)
    assert (early.count, late.count) == (3, 4)
    assert steps_of(trained, "loss/train/kd") == list(range(6))


def test_a_teacher_whose_weight_is_0_now_does_not_answer():
    first, second = Counted(mlp(1)), Counted(mlp(2))
    teachers = [
        Teacher(first, weight=lambda state: float(int(state.timestamp.batch) < 2)),
        Teacher(second, weight=lambda state: float(int(state.timestamp.batch) % 2)),
    ]
    trained = fit(
        Classifier(mlp(0)),
        Distillation(teachers, forward_kl(), 0.5, 0.5),
        train_dataloader=loader(20, 5),
    )
    assert (first.count, second.count) == (2, 2)
    assert steps_of(trained, "loss/train/kd") == [0, 1, 3]


def test_a_teacher_leaves_the_device_when_its_window_is_over(monkeypatch):
    from composer_distill.teachers.live import LiveTeacher

    left = []
    monkeypatch.setattr(LiveTeacher, "leave", lambda self: left.append(self.label))
    teachers = [Teacher(mlp(1), end_dur="2ba", name="assistant"), mlp(2)]
    seen = Spy(Event.BATCH_START, lambda state: list(left))
    fit(
        Classifier(mlp(0)),
        Distillation(teachers, forward_kl()),
        train_dataloader=loader(20, 5),
        callbacks=seen,
    )
    assert left == ["teacher 0 (assistant)"]
    assert seen.seen[1] == []


def test_windows_that_can_not_be():
    with pytest.raises(ValueError, match=r"teacher \(Linear\): end_dur as a fraction"):
        Teacher(nn.Linear(2, 2), end_dur=3.0)
    term = Distillation(Teacher(mlp(1), weight=lambda state: -1.0, name="one"), forward_kl())
    with pytest.raises(ValueError, match=r"teacher 0 \(one\): weight must be a finite number"):
        fit(Classifier(mlp(0)), term)


def test_evaluation_asks_every_teacher_whatever_its_window():
    term = Distillation([Teacher(mlp(1), end_dur="1ba"), mlp(2)], forward_kl(), eval_teachers=True)
    trained = fit(
        Classifier(mlp(0)), term, train_dataloader=loader(20, 5), eval_dataloader=loader(10, 5)
    )
    assert len(entries_of(trained)["metrics/eval/teacher_kl"]) == 1


def test_evaluation_leaves_out_who_does_not_exist_yet():
    def run(teachers):
        return entries_of(
            fit(
                ComposerClassifier(mlp(0), num_classes=N_CLASSES),
                Distillation(teachers, forward_kl(), eval_teachers=True),
                train_dataloader=loader(20, 5),
                eval_dataloader=loader(10, 5),
                eval_interval="1ba",
            )
        )

    late = run(EMATeacher(start_dur="2ba"))
    assert [step for step, _ in late["metrics/eval/teacher/MulticlassAccuracy"]] == [2, 3, 4]
    assert [step for step, _ in late["metrics/eval/teacher_kl"]] == [2, 3, 4]
    both = run([mlp(1), EMATeacher(start_dur="2ba")])
    assert len(both["metrics/eval/teacher_0/MulticlassAccuracy"]) == 4
    assert len(both["metrics/eval/teacher_1/MulticlassAccuracy"]) == 3


@pytest.mark.parametrize(
    ("teachers", "options", "told"),
    [
        ([mlp(1), Teacher(mlp(2), start_dur="100ba")], {}, ["teacher 1 (Sequential)"]),
        (Teacher(mlp(1), end_dur="2ba"), {"start_dur": "3ba"}, ["teacher 0 (Sequential)"]),
        (Snapshot(start_dur="3ba"), {"end_dur": "3ba"}, ["teacher 0 (snapshot of the student)"]),
        (Teacher(mlp(1), start_dur="2ba"), {"end_dur": "3ba"}, []),
    ],
    ids=["behind the end", "before all begins", "behind all", "one batch"],
)
def test_a_teacher_that_no_batch_will_ask_is_told_of(teachers, options, told, caplog):
    term = Distillation(teachers, forward_kl(), **options)
    fit(Classifier(mlp(0)), term, train_dataloader=loader(20, 5))
    said = [r.getMessage() for r in caplog.records if "will not act" in r.getMessage()]
    assert [message.partition(" will not")[0] for message in said] == told
