"""What fails, fails early and by name; what Composer retries comes out exact."""

import copy
import math

import pytest
import torch
from composer.core import Callback, Event
from integration.harness import (
    N_CLASSES,
    Classifier,
    Spy,
    assert_close,
    assert_same,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    trainer_for,
)
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence, Teacher, teacher_confident


class Greedy(nn.Module):
    """A teacher that runs out of memory on microbatches above ``limit`` samples."""

    def __init__(self, module, limit, begin=0):
        super().__init__()
        self.module = module
        self.limit = limit
        self.calls, self.failures, self.begin = 0, 0, begin

    def forward(self, inputs):
        self.calls += 1
        if self.calls > self.begin and len(inputs) > self.limit:
            self.failures += 1
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.module(inputs)


@pytest.fixture
def auto_on_cpu(monkeypatch):
    """Let Composer look for a microbatch size on the CPU, which it refuses of itself."""
    monkeypatch.setattr(
        "composer.trainer.trainer._is_auto_microbatching", lambda size, device: size == "auto"
    )


def train(teachers, size, student=None, **kwargs):
    student = Classifier(mlp(0, dropout=0.0)) if student is None else student
    term = Distillation(teachers, KLDivergence(2.0), n_teachers_to_sample=1, seed=3)
    return fit(
        student,
        term,
        train_dataloader=loader(32, 8),
        device_train_microbatch_size=size,
        max_duration="2ep",
        **kwargs,
    )


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.usefixtures("auto_on_cpu")
@pytest.mark.parametrize("begin", [0, 1, 3], ids=["at once", "in the second call", "later"])
def test_a_teacher_out_of_memory_trains_as_if_the_microbatches_had_been_small(begin):
    starved = [Greedy(mlp(seed), limit=2, begin=begin) for seed in (1, 2, 3)]
    retried = train(starved, "auto")
    small = train([mlp(1), mlp(2), mlp(3)], 2)
    assert sum(teacher.failures for teacher in starved) >= 2
    assert retried.state.device_train_microbatch_size == 2
    assert_close(retried.state.model, small.state.model)
    for name in ("loss/train/kd", "loss/train/org", "distillation/agreement"):
        assert logged(retried, name) == pytest.approx(logged(small, name), rel=1e-5), name


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.usefixtures("auto_on_cpu")
def test_a_first_batch_that_runs_out_of_memory_trains_bitwise_as_small_microbatches():
    starved = [Greedy(mlp(seed), limit=2) for seed in (1, 2, 3)]
    retried, small = train(starved, "auto"), train([mlp(1), mlp(2), mlp(3)], 2)
    assert_same(retried.state.model, small.state.model)


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.usefixtures("auto_on_cpu")
def test_a_microbatch_that_passed_before_memory_ran_out_counts_once():
    class Fails(Greedy):
        """Fails in its first call, of 8 samples, and its third, the second of 4 samples."""

        def forward(self, inputs):
            self.limit = 0 if self.calls in (0, 2) else 8
            return super().forward(inputs)

    retried, small = train([Fails(mlp(1), 8)], "auto"), train([mlp(1)], 2)
    assert_same(retried.state.model, small.state.model)
    for name in ("loss/train/kd", "loss/train/org", "distillation/agreement"):
        assert logged(retried, name) == logged(small, name), name


@pytest.mark.filterwarnings("ignore:CUDA out of memory")
@pytest.mark.usefixtures("auto_on_cpu")
def test_what_a_pass_that_ran_out_of_memory_answered_is_forgotten():
    class Fails(Greedy):
        """Fails in its first and third call, and answers no numbers in its second."""

        def forward(self, inputs):
            self.limit = 0 if self.calls in (0, 2) else 8
            bad = math.nan if self.calls == 1 else 0.0
            return super().forward(inputs) + bad

    retried, small = train([Fails(mlp(1), 8)], "auto"), train([mlp(1)], 2)
    assert_same(retried.state.model, small.state.model)


@pytest.mark.parametrize("event", [Event.AFTER_BACKWARD, Event.AFTER_TRAIN_BATCH])
def test_a_batch_that_was_interrupted_leaves_nothing_in_the_next_fit(event):
    class Stops(Callback):
        stopped = False

        def run_event(self, now, state, logger):
            if now == event and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt

    stops, teacher = Stops(), mlp(1)
    teacher.register_forward_hook(lambda module, args, output: output + 1e3 * (not stops.stopped))
    term = Distillation(teacher, nn.MSELoss())
    copies = Spy(Event.FIT_START, lambda state: copy.deepcopy(term))  # no graph is left in it
    trainer = trainer_for(Classifier(mlp(0)), term, max_duration="2ba", callbacks=[stops, copies])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.fit()
    trainer.close()
    distances = logged(trainer, "loss/train/kd")
    assert len(distances) == 2
    assert max(distances) < 1e3


@pytest.fixture(params=[True, False], ids=["host reads", "host waits"])
def readable(request, monkeypatch):
    """Look at a teacher's answers at once, as on a CPU, and once a batch, as on a GPU."""
    if not request.param:
        monkeypatch.setattr("composer_distill.terms.guard.can_be_read", lambda tensor: False)


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize("bad", [math.nan, math.inf])  # -inf rules one class out
def test_a_teacher_that_answers_no_numbers_stops_the_run_before_its_batch_trains(bad):
    broken = Broken(mlp(2), bad, batch=2)
    student = Classifier(mlp(0))
    steps = Spy(
        Event.BATCH_START, lambda _: {k: v.clone() for k, v in student.state_dict().items()}
    )
    term = Distillation([mlp(1), Teacher(broken, name="cracked")], KLDivergence(2.0))
    with pytest.raises(ValueError, match=r"teacher 1 \(cracked\).*NaN or infinity at batch 2"):
        fit(student, term, callbacks=steps, max_duration="2ep", device_train_microbatch_size=5)
    assert len(steps.seen) == 3
    torch.testing.assert_close(dict(student.state_dict()), steps.seen[2], rtol=0, atol=0)


class Broken(nn.Module):
    """A teacher one of whose logits is ``bad`` in one microbatch of one batch."""

    def __init__(self, module, bad, batch, microbatches=2):
        super().__init__()
        self.module, self.bad = module, bad
        self.when, self.calls = batch * microbatches, 0

    def forward(self, inputs):
        logits = self.module(inputs)
        if self.calls == self.when:
            logits[1, 2] = self.bad
        self.calls += 1
        return logits


@pytest.mark.usefixtures("readable")
def test_a_teacher_that_answers_no_numbers_may_be_skipped():
    broken = Broken(mlp(1), math.nan, batch=1)
    student = Classifier(mlp(0))
    term = Distillation(broken, KLDivergence(2.0), 0.7, 0.3, on_nonfinite="skip")
    trainer = fit(student, term, max_duration="2ep", device_train_microbatch_size=5)
    assert logged(trainer, "distillation/skipped") == pytest.approx([0.0, 0.5, 0.0, 0.0])
    assert all(math.isfinite(value) for value in logged(trainer, "loss/train/kd"))
    assert all(parameter.isfinite().all() for parameter in student.parameters())


@pytest.mark.usefixtures("readable")
def test_a_skipped_microbatch_trains_on_the_students_own_loss_alone():
    student = Classifier(mlp(0))
    inputs, targets = next(iter(loader()))
    model, teacher = mlp(0), mlp(1)
    logits = model(inputs)
    kd = forward_kl(2.0)(logits[5:], teacher(inputs[5:]).detach())
    loss = 0.3 * F.cross_entropy(logits, targets) + 0.7 * 0.5 * kd
    expected = torch.autograd.grad(loss, list(model.parameters()))
    spy = Spy(Event.AFTER_TRAIN_BATCH, lambda _: [p.grad.clone() for p in student.parameters()])
    broken = Broken(mlp(1), math.nan, batch=0)
    term = Distillation(broken, KLDivergence(2.0), 0.7, 0.3, on_nonfinite="skip")
    fit(student, term, max_duration="1ba", device_train_microbatch_size=5, callbacks=spy)
    torch.testing.assert_close(spy.seen[0], list(expected), rtol=1e-6, atol=1e-9)


@pytest.mark.usefixtures("readable")
def test_a_skipped_microbatch_counts_as_nothing_in_the_loss_from_each_teacher():
    broken = Broken(mlp(1), math.nan, batch=0)
    term = Distillation([broken, mlp(2)], KLDivergence(2.0), 0.7, 0.3, on_nonfinite="skip")
    trainer = fit(Classifier(mlp(0)), term, max_duration="1ba", device_train_microbatch_size=5)
    inputs, _ = next(iter(loader()))
    for index, teacher in enumerate((mlp(1), mlp(2))):
        kd = 0.5 * forward_kl(2.0)(mlp(0)(inputs[5:]), teacher(inputs[5:]))
        name = f"distillation/kd_loss/teacher_{index}"
        assert logged(trainer, name) == pytest.approx([kd.item()], rel=1e-5)


@pytest.mark.usefixtures("readable")
@pytest.mark.parametrize("judge", [None, teacher_confident(0.3)], ids=str)
def test_what_was_skipped_says_nothing_of_the_teacher(judge):
    inputs, _ = next(iter(loader()))
    found = []
    for teacher, options in (
        (Broken(mlp(1), math.nan, batch=0), {"on_nonfinite": "skip"}),
        (mlp(1), {}),
    ):
        term = Distillation(teacher, KLDivergence(2.0), 1.0, 0.0, mask_fn=judge, **options)
        trainer = fit(Classifier(mlp(0)), term, max_duration="1ba", device_train_microbatch_size=5)
        found.append(entries_of(trainer))
    with torch.no_grad():
        student, teacher = mlp(0)(inputs[5:]), mlp(1)(inputs[5:])
    answered = {
        "kl": forward_kl(1.0)(student, teacher).item(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).double().mean().item(),
        "teacher_entropy": -(teacher.softmax(-1) * teacher.log_softmax(-1)).sum(-1).mean().item(),
    }
    for name, expected in answered.items():
        ((_, value),) = found[0][f"distillation/{name}"]
        assert value == pytest.approx(expected, rel=1e-5)
    assert found[0].keys() - found[1].keys() == {"distillation/skipped"}


def test_a_batch_that_is_skipped_whole_tells_nothing_of_the_teacher():
    class Silent(nn.Module):
        def forward(self, inputs):
            return inputs.new_full((len(inputs), N_CLASSES), math.nan)

    term = Distillation(Silent(), KLDivergence(2.0), 0.7, 0.3, on_nonfinite="skip")
    names = entries_of(fit(Classifier(mlp(0)), term)).keys()
    assert not {f"distillation/{name}" for name in ("kl", "agreement", "teacher_entropy")} & names
    assert "distillation/skipped" in names


def test_a_student_that_diverges_is_not_blamed_on_a_teacher():
    student = Classifier(mlp(0))
    with torch.no_grad():
        student.module[0].weight.fill_(math.nan)
    trainer = fit(student, Distillation(mlp(1), KLDivergence(2.0)))
    assert all(math.isnan(value) for value in logged(trainer, "loss/train/kd"))


def wide(seed):
    return nn.Sequential(*mlp(seed)[:-1], nn.Linear(8, 7).double())


def test_other_classes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"teacher 0 \(Sequential\).*\(10, 7\).*\(10, 4\)"):
        fit(Classifier(mlp(0)), Distillation(wide(1), KLDivergence()))


def test_a_teacher_is_named_by_its_place():
    teachers = [mlp(1), Teacher(wide(1), name="big")]
    with pytest.raises(ValueError, match=r"teacher 1 \(big\)"):
        fit(Classifier(mlp(0)), Distillation(teachers, KLDivergence()))


@pytest.mark.parametrize(
    "distance",
    [lambda s, t: (s.detach() - t).square().mean(), lambda s, t: (t * t).mean()],
    ids=["detached student", "student unused"],
)
def test_a_distance_without_a_gradient_path_is_refused(distance):
    with pytest.raises(ValueError, match="kd_loss_fn .*gradient"):
        fit(Classifier(mlp(0)), Distillation(mlp(1), distance))


def test_a_distance_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="kd_loss_fn must return a tensor, got float"):
        fit(Classifier(mlp(0)), Distillation(mlp(1), lambda s, t: (s - t).square().mean().item()))


SHARING = {
    "the student itself": lambda student: student,
    "the module that the student wraps": lambda student: student.module,
    "one layer": lambda student: nn.Sequential(*mlp(1)[:-1], student.module[-1]),
    "one parameter": lambda student: tied(student),
    "a view of a parameter": lambda student: viewing(student),
}


def tied(student):
    teacher = mlp(1)
    teacher[0].weight = student.module[0].weight
    return teacher


def viewing(student):
    teacher = mlp(1)
    teacher[0].weight = nn.Parameter(student.module[0].weight.data)
    return teacher


@pytest.mark.parametrize("name", SHARING)
def test_a_teacher_that_shares_parameters_with_the_student_is_refused(name):
    student = Classifier(mlp(0))
    with pytest.raises(ValueError, match=r"teacher 1 .*shares.*student"):
        trainer_for(student, Distillation([mlp(2), SHARING[name](student)], KLDivergence()))
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_teacher_in_the_optimizer_is_refused():
    student, teacher = Classifier(mlp(0)), mlp(1)
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1)
    with pytest.raises(ValueError, match=r"teacher 0 .*optimizer"):
        trainer_for(student, Distillation(teacher, KLDivergence()), optimizers=optimizer)


def test_a_window_in_unlike_units_that_ends_before_it_starts_is_refused_when_fit_begins():
    term = Distillation(mlp(1), KLDivergence(), start_dur="3ba", end_dur="1ep")
    with pytest.raises(ValueError, match="start_dur .*3ba.* is later than end_dur .*1ep"):
        fit(Classifier(mlp(0)), term, max_duration="4ep")


@pytest.mark.parametrize("name", ["kd_loss_weight", "org_loss_weight"])
@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_a_schedule_that_leaves_its_range_is_refused_with_the_batch(name, value):
    schedule = {name: lambda state: value if int(state.timestamp.batch) == 1 else 0.5}
    with pytest.raises(ValueError, match=rf"{name} must be .* at batch 1"):
        fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence(), **schedule))


def test_fit_goes_on_after_fit():
    trainer = trainer_for(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()))
    trainer.fit()
    trainer.fit(duration="1ep")
    trainer.close()
    straight = fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()), max_duration="2ep")
    assert_same(trainer.state.model, straight.state.model)
    assert logged(trainer, "loss/train/kd") == logged(straight, "loss/train/kd")


def test_an_algorithm_may_be_used_in_a_second_trainer():
    term = Distillation(mlp(1), KLDivergence(), start_dur="1ba")
    first, second = (fit(Classifier(mlp(0)), term, max_duration="2ep") for _ in range(2))
    assert_same(first.state.model, second.state.model)
    assert entries_of(first).keys() == entries_of(second).keys()


def test_a_run_that_fails_in_the_middle_leaves_the_algorithm_usable():
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.failed = mlp(1), False

        def forward(self, inputs):
            if not self.failed:
                self.failed = True
                raise RuntimeError("a passing trouble")
            return self.module(inputs)

    term = Distillation(Once(), KLDivergence())
    with pytest.raises(RuntimeError, match="a passing trouble"):
        fit(Classifier(mlp(0)), term)
    again = fit(Classifier(mlp(0)), term)
    expected = fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()))
    assert_same(again.state.model, expected.state.model)
