"""Functions of the user's in a real Trainer: what they break, and what the error says."""

import sys
from functools import partial

import pytest
import torch
from composer.core import Event
from integration.harness import (
    Classifier,
    Recorder,
    Spy,
    assert_same,
    dataset,
    fit,
    logged,
    mlp,
)
from torch import nn
from torch.utils.data import DataLoader

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


class Centred(nn.Module):
    """Keeps a running mean of what it is given, in a buffer or in an attribute."""

    def __init__(self, kept_in):
        super().__init__()
        self.kept_in, self.parts = kept_in, {"mean": torch.zeros(4, dtype=torch.float64)}
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    def forward(self, student, teacher):
        if self.kept_in == "buffer":
            self.mean.lerp_(teacher.mean(0), 0.1)
        elif self.kept_in == "attribute":
            self.mean = self.mean.lerp(teacher.mean(0), 0.1)
        else:
            self.parts["mean"].lerp_(teacher.mean(0), 0.1)
        mean = self.parts["mean"] if self.kept_in == "dict" else self.mean
        return (student - (teacher - mean)).square().mean()


HOW = {
    "module": lambda loss: loss,
    "method": lambda loss: loss.forward,
    "partial": partial,
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kept_in", ["buffer", "attribute", "dict"])
def test_telemetry_changes_nothing_that_a_loss_keeps(kept_in, how):
    students = [Classifier(mlp(0)), Classifier(mlp(0))]
    for student, telemetry in zip(students, (True, False), strict=True):
        loss = HOW[how](Centred(kept_in))
        fit(student, Distillation([mlp(1), mlp(2)], loss, telemetry=telemetry))
    assert_same(*students)


WRITERS = {
    "mask_fn": lambda: Distillation(
        mlp(1), KLDivergence(), mask_fn=lambda batch, _: batch[1].abs_() > 0
    ),
    "student_output_fn": lambda: Distillation(
        mlp(1), KLDivergence(), student_output_fn=lambda output: output.div_(2)
    ),
    "route": lambda: Distillation(
        [Teacher(mlp(1), route=lambda batch: batch[1].abs_() > 0), mlp(2)], KLDivergence()
    ),
}


@pytest.mark.parametrize("argument", WRITERS)
def test_a_function_that_writes_into_what_others_read_is_refused(argument):
    student = Classifier(mlp(0))
    with pytest.raises(ValueError, match=rf"^{argument} \(<lambda>.*writes into a tensor"):
        fit(student, WRITERS[argument]())
    assert_same(student, Classifier(mlp(0)))


def test_a_function_may_take_entries_out_of_what_it_is_given():
    class OfDict(Classifier):
        def forward(self, batch):
            return {"logits": self.module(batch["inputs"])}

        def loss(self, outputs, batch):
            return nn.functional.cross_entropy(outputs["logits"], batch["labels"])

    rows = [{"inputs": x, "labels": y, "real": y > 0} for x, y in dataset()]
    seen = Spy(Event.AFTER_LOSS, lambda state: (list(state.batch), list(state.outputs)))
    term = Distillation(
        Recorder(mlp(1)),
        KLDivergence(),
        mask_fn=lambda batch, outputs: batch.pop("real"),
        student_output_fn=lambda outputs: outputs.pop("logits"),
    )
    fit(OfDict(mlp(0)), term, train_dataloader=DataLoader(rows, batch_size=10), callbacks=[seen])
    assert seen.seen == [(["inputs", "labels", "real"], ["logits"])] * 2


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
