"""Real fits against loops in plain torch: each kind of loss, weight, distance and teacher."""

import pytest
import torch
from composer.core import Event
from composer.optim import LinearScheduler
from integration.harness import (
    RTOL,
    Classifier,
    Spy,
    assert_close,
    assert_differ,
    batches_of,
    fit,
    forward_kl,
    loader,
    mlp,
    train_by_hand,
)
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence, Teacher
from composer_distill.terms.sampling import sample_teachers


def square(logits):
    return logits.square().mean()


def task_total(logits, targets):
    """The objective that every loss kind of two parts adds up to."""
    return F.cross_entropy(logits, targets) + 0.25 * square(logits)


# name: what the student's loss() returns, and the scalar that Composer trains for it
LOSS_KINDS = {
    "tensor": (F.cross_entropy, F.cross_entropy),
    "shape (1,)": (lambda x, y: F.cross_entropy(x, y).reshape(1), F.cross_entropy),
    "vector": (lambda x, y: F.cross_entropy(x, y, reduction="none"), F.cross_entropy),
    "tuple": (lambda x, y: (F.cross_entropy(x, y), 0.25 * square(x)), task_total),
    "list": (lambda x, y: [F.cross_entropy(x, y), 0.25 * square(x)], task_total),
    "tuple of vectors": (
        lambda x, y: (F.cross_entropy(x, y, reduction="none"), 0.25 * x.square().mean(-1)),
        task_total,
    ),
    "dict": (lambda x, y: {"ce": F.cross_entropy(x, y), "l2": 0.25 * square(x)}, task_total),
    "dict with total": (
        lambda x, y: {"total": task_total(x, y), "ce": F.cross_entropy(x, y), "l2": square(x)},
        task_total,
    ),
}


@pytest.mark.parametrize("microbatch", [10, 4])
@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_each_kind_of_loss_is_trained_as_the_weighted_sum(kind, microbatch):
    loss_fn, total = LOSS_KINDS[kind]
    teacher, distance = mlp(1), forward_kl(2.0)
    student = Classifier(mlp(0), loss_fn)

    def objective(module, batch):
        logits = module(batch[0])
        kd = distance(logits, teacher(batch[0]).detach())
        return 0.3 * total(logits, batch[1]) + 0.7 * kd

    expected = train_by_hand(student.module, loader(), objective)
    term = Distillation(teacher, distance, kd_loss_weight=0.7, org_loss_weight=0.3)
    fit(student, term, device_train_microbatch_size=microbatch)
    assert_close(student.module, expected)


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_each_kind_of_loss_keeps_its_own_weight_when_the_distillation_weight_is_zero(kind):
    loss_fn, total = LOSS_KINDS[kind]
    student = Classifier(mlp(0), loss_fn)
    expected = train_by_hand(student.module, loader(), lambda m, b: 0.3 * total(m(b[0]), b[1]))
    fit(student, Distillation(mlp(1), forward_kl(), kd_loss_weight=0.0, org_loss_weight=0.3))
    assert_close(student.module, expected)


@pytest.mark.parametrize("kind", LOSS_KINDS)
def test_the_task_loss_may_weigh_nothing(kind):
    loss_fn, _ = LOSS_KINDS[kind]
    teacher, distance = mlp(1), forward_kl()
    student = Classifier(mlp(0), loss_fn)
    expected = train_by_hand(
        student.module, loader(), lambda m, b: distance(m(b[0]), teacher(b[0]).detach())
    )
    fit(student, Distillation(teacher, distance, kd_loss_weight=1.0, org_loss_weight=0.0))
    assert_close(student.module, expected)


DISTANCES = {
    "KLDivergence": (KLDivergence(temperature=4.0), forward_kl(4.0)),
    "MSELoss": (nn.MSELoss(), lambda s, t: (s - t).square().mean()),
    "smooth_l1_loss": (F.smooth_l1_loss, F.smooth_l1_loss),
    "lambda": (lambda s, t: (s - t).abs().sum(), lambda s, t: (s - t).abs().sum()),
    "one value per sample": (
        lambda s, t: (s - t).square().sum(-1),
        lambda s, t: (s - t).square().sum(-1).mean(),
    ),
    "one value per entry": (nn.MSELoss(reduction="none"), F.mse_loss),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_each_distance_is_trained(name):
    kd_loss_fn, distance = DISTANCES[name]
    teacher, student = mlp(1), Classifier(mlp(0))

    def objective(module, batch):
        logits = module(batch[0])
        kd = distance(logits, teacher(batch[0]).detach())
        return 0.1 * F.cross_entropy(logits, batch[1]) + 0.02 * kd

    expected = train_by_hand(student.module, loader(), objective)
    fit(student, Distillation(teacher, kd_loss_fn, kd_loss_weight=0.02))
    assert_close(student.module, expected)


def test_the_divergence_runs_forward_from_student_to_teacher():
    # Reversed arguments would train the reverse KL, which differs on this asymmetric pair.
    teacher, student = mlp(1), Classifier(mlp(0))
    forward, reverse = (
        train_by_hand(student.module, loader(), objective)
        for objective in (
            lambda m, b: forward_kl()(m(b[0]), teacher(b[0]).detach()),
            lambda m, b: forward_kl()(teacher(b[0]).detach(), m(b[0])),
        )
    )
    fit(student, Distillation(teacher, KLDivergence(1.0), kd_loss_weight=1.0, org_loss_weight=0.0))
    assert_close(student.module, forward)
    assert_differ(student.module, reverse)


def test_an_asymmetric_callable_gets_the_student_first():
    teacher, student = mlp(1), Classifier(mlp(0))
    seen = []

    def distance(first, second):
        seen.append((first.detach().clone(), second.detach().clone()))
        return (first - second).square().mean()

    batch = next(iter(loader()))
    expected = student.module(batch[0]).detach(), teacher(batch[0]).detach()
    fit(student, Distillation(teacher, distance), max_duration="1ba")
    torch.testing.assert_close(seen[0], expected)


def test_a_student_that_equals_its_teacher_does_not_move():
    student = Classifier(mlp(0))
    fit(
        student,
        Distillation(mlp(0), KLDivergence(4.0), kd_loss_weight=1.0, org_loss_weight=0.0),
    )
    torch.testing.assert_close(student.module.state_dict(), mlp(0).state_dict(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("microbatch", [1, 3, 4, 9])
def test_gradients_are_the_same_for_every_microbatch_size(microbatch):
    def gradients(size):
        student = Classifier(mlp(0))
        term = Distillation([mlp(1), mlp(2), mlp(3)], KLDivergence(2.0), n_teachers_to_sample=1)
        spy = Spy(Event.AFTER_TRAIN_BATCH, lambda _: [p.grad.clone() for p in student.parameters()])
        fit(student, term, device_train_microbatch_size=size, max_duration="1ba", callbacks=spy)
        return spy.seen[0]

    torch.testing.assert_close(gradients(microbatch), gradients(10), rtol=RTOL, atol=1e-9)


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 5, 9])
def test_trained_weights_are_the_same_for_every_microbatch_size(microbatch):
    teachers = [mlp(1), mlp(2), mlp(3)]
    whole, split = Classifier(mlp(0)), Classifier(mlp(0))
    for student, size in ((whole, 10), (split, microbatch)):
        term = Distillation(teachers, KLDivergence(2.0), n_teachers_to_sample=2)
        fit(student, term, device_train_microbatch_size=size, max_duration="3ep")
    assert_close(split, whole)


def test_several_teachers_answer_as_the_mean_of_their_logits():
    teachers, student = [mlp(1), mlp(2), mlp(3)], Classifier(mlp(0))

    def objective(module, batch):
        target = torch.stack([teacher(batch[0]).detach() for teacher in teachers]).mean(0)
        return forward_kl(2.0)(module(batch[0]), target)

    expected = train_by_hand(student.module, loader(), objective)
    fit(student, Distillation(teachers, forward_kl(2.0), 1.0, 0.0))
    assert_close(student.module, expected)


def test_weighted_teachers_answer_as_the_weighted_mean_of_their_logits():
    first, second, student = mlp(1), mlp(2), Classifier(mlp(0))

    def objective(module, batch):
        target = 0.25 * first(batch[0]).detach() + 0.75 * second(batch[0]).detach()
        return forward_kl(2.0)(module(batch[0]), target)

    expected = train_by_hand(student.module, loader(), objective)
    teachers = [Teacher(first, weight=1.0), Teacher(second, weight=3.0)]
    fit(student, Distillation(teachers, forward_kl(2.0), 1.0, 0.0))
    assert_close(student.module, expected)


def test_mixed_probabilities_train_the_mean_of_the_divergences_from_each_teacher():
    teachers, student = [mlp(1), mlp(2), mlp(3)], Classifier(mlp(0))

    def objective(module, batch):
        logits = module(batch[0])
        parts = [forward_kl(3.0)(logits, teacher(batch[0]).detach()) for teacher in teachers]
        return torch.stack(parts).mean()

    expected = train_by_hand(student.module, loader(), objective)
    fit(student, Distillation(teachers, KLDivergence(3.0), 1.0, 0.0, combine="probabilities"))
    assert_close(student.module, expected)


def test_a_batch_is_taught_by_the_teachers_that_sample_teachers_names():
    teachers, student = [mlp(1), mlp(2), mlp(3), mlp(4)], Classifier(mlp(0))
    draws = iter([sample_teachers([1.0] * 4, 2, 11, batch) for batch in range(8)])

    def objective(module, batch):
        target = sum(share * teachers[i](batch[0]).detach() for i, share in next(draws))
        return forward_kl()(module(batch[0]), target)

    expected = train_by_hand(student.module, batches_of(loader(), epochs=4), objective)
    fit(
        student,
        Distillation(teachers, forward_kl(), 1.0, 0.0, n_teachers_to_sample=2, seed=11),
        max_duration="4ep",
        device_train_microbatch_size=4,
    )
    assert_close(student.module, expected)


def test_schedules_weigh_both_losses_anew_in_every_batch():
    teacher, student = mlp(1), Classifier(mlp(0))
    batch_index = iter(range(6))

    def objective(module, batch):
        now = next(batch_index)
        logits = module(batch[0])
        kd = forward_kl()(logits, teacher(batch[0]).detach())
        return now / 6 * F.cross_entropy(logits, batch[1]) + (1 - now / 6) * kd

    expected = train_by_hand(student.module, batches_of(loader(), epochs=3), objective)
    term = Distillation(
        teacher,
        forward_kl(),
        kd_loss_weight=lambda state: 1 - int(state.timestamp.batch) / 6,
        org_loss_weight=lambda state: int(state.timestamp.batch) / 6,
    )
    fit(student, term, max_duration="3ep", device_train_microbatch_size=5)
    assert_close(student.module, expected)


def test_composers_own_schedulers_weigh_the_distillation_term():
    teacher, student = mlp(1), Classifier(mlp(0))
    batch_index = iter(range(6))

    def objective(module, batch):
        logits = module(batch[0])
        kd = forward_kl()(logits, teacher(batch[0]).detach())
        return F.cross_entropy(logits, batch[1]) + (1 - next(batch_index) / 6) * kd

    expected = train_by_hand(student.module, batches_of(loader(), epochs=3), objective)
    schedule = LinearScheduler(alpha_i=1.0, alpha_f=0.0, t_max="6ba")
    fit(student, Distillation(teacher, forward_kl(), schedule, 1.0), max_duration="3ep")
    assert_close(student.module, expected)


def test_a_regression_student_is_distilled_from_a_regression_teacher():
    teacher, student = mlp(1), Classifier(mlp(0), lambda x, y: (x.mean(-1) - y).square().mean())

    def objective(module, batch):
        outputs = module(batch[0])
        task = (outputs.mean(-1) - batch[1]).square().mean()
        return 0.1 * task + 0.9 * (outputs - teacher(batch[0]).detach()).square().mean()

    expected = train_by_hand(student.module, loader(), objective, lr=0.05)
    fit(student, Distillation(teacher, nn.MSELoss()), lr=0.05)
    assert_close(student.module, expected)


def test_positions_count_alike_when_an_output_has_a_sequence_axis():
    # A token mean: torch's batchmean would be T times too large.
    teacher, student = mlp(1), Classifier(mlp(0), lambda x, y: x.square().mean())
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 5, 6, generator=generator, dtype=torch.float64)
    data = [(inputs, torch.zeros(4))]

    def objective(module, batch):
        flat = batch[0].flatten(0, 1)
        return forward_kl()(module(flat), teacher(flat).detach())

    expected = train_by_hand(student.module, data, objective)
    fit(
        student,
        Distillation(teacher, KLDivergence(1.0), 1.0, 0.0),
        train_dataloader=data,
        device_train_microbatch_size=2,
    )
    assert_close(student.module, expected)
