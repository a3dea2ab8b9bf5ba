"""Functions of the user's in a real Trainer: what they break, and what the error says."""

import sys

import pytest
from integration.harness import Classifier, assert_same, fit, logged, mlp
from torch import nn

from composer_distill import Distillation, KLDivergence, Teacher


def raising(*_):
    raise KeyError("no such thing")


ARGUMENTS = {
    "kd_loss_fn": lambda: Distillation(mlp(1), raising),
    "mask_fn": lambda: Distillation(mlp(1), KLDivergence(2.0), mask_fn=raising),
    "student_output_fn": lambda: Distillation(mlp(1), nn.MSELoss(), student_output_fn=raising),
    "kd_loss_weight": lambda: Distillation(mlp(1), KLDivergence(2.0), kd_loss_weight=raising),
    "org_loss_weight": lambda: Distillation(mlp(1), KLDivergence(2.0), org_loss_weight=raising),
    "input_fn": lambda: Distillation(Teacher(mlp(1), input_fn=raising), KLDivergence(2.0)),
    "output_fn": lambda: Distillation(Teacher(mlp(1), output_fn=raising), KLDivergence(2.0)),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take no notes")
@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_error_of_a_function_names_its_argument(argument):
    with pytest.raises(KeyError, match="no such thing") as caught:
        fit(Classifier(mlp(0)), ARGUMENTS[argument]())
    assert f"This was raised by {argument} (raising)" in "\n".join(caught.value.__notes__)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take no notes")
def test_an_error_of_a_losss_schedule_names_the_loss():
    with pytest.raises(KeyError, match="no such thing") as caught:
        fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence(temperature=raising)))
    note = "This was raised by kd_loss_fn (KLDivergence) in a schedule."
    assert caught.value.__notes__ == [note]


def spoiling(student, teacher):
    return nn.functional.mse_loss(student.mul_(0.5), teacher.mul_(0.5))


def sparing(student, teacher):
    return nn.functional.mse_loss(student * 0.5, teacher * 0.5)


def test_a_loss_that_writes_into_the_answer_trains_and_logs_as_one_that_does_not(caplog):
    students = [Classifier(mlp(0)), Classifier(mlp(0))]
    runs = [
        fit(student, Distillation([mlp(1), mlp(2)], loss))
        for student, loss in zip(students, (spoiling, sparing), strict=True)
    ]
    assert_same(*students)
    for name in ("loss/train/kd", "distillation/agreement", "distillation/kl"):
        assert logged(runs[0], name) == logged(runs[1], name) != []
    assert caplog.text.count("kd_loss_fn writes into the logits") == 1


class Breaking:
    """Returns NaN in one batch, of whatever it is given."""

    def __init__(self, at):
        self.at, self.calls = at, 0

    def __call__(self, student, teacher):
        self.calls += 1
        distance = (student - teacher).square()
        return distance.sub(distance.detach()).log().mean() if self.calls == self.at else distance


def test_a_loss_of_nan_stops_the_run_before_the_step():
    student = Classifier(mlp(0))
    with pytest.raises(ValueError, match="kd_loss_fn returned NaN or infinity, .*at batch 0"):
        fit(student, Distillation(mlp(1), Breaking(1), telemetry=False))
    assert_same(student, Classifier(mlp(0)))


def test_a_loss_of_nan_counts_nothing_where_such_batches_are_skipped(caplog):
    student = Classifier(mlp(0))
    fit(student, Distillation(mlp(1), Breaking(2), on_nonfinite="skip"))
    assert all(weight.isfinite().all() for weight in student.parameters())
    assert caplog.text.count("kd_loss_fn returned NaN or infinity") == 1
    assert "It counts 0 there" in caplog.text
