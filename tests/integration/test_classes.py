"""What a class is: classes that are ruled out, and numbers that are no classes."""

import pytest
import torch
from composer.models import ComposerClassifier
from integration.harness import Classifier, entries_of, fit, logged
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import Distillation, KLDivergence, Teacher
from composer_distill.losses import BernoulliKL, CosineEmbedding, LogitMSE

ABOUT_CLASSES = {"agreement", "kl", "student_entropy", "teacher_entropy"}
WIDTH = 12


class RuledOut(nn.Module):
    """A classifier in which one class can never be, such as a padded or forbidden token."""

    def __init__(self, seed, ruled_out=True, value=-float("inf")):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(6, 4).double()
        self.ruled_out, self.value = ruled_out, value

    def forward(self, inputs):
        logits = self.inner(inputs)
        if self.ruled_out:
            logits = logits.index_fill(-1, torch.tensor([2]), self.value)
        return logits


def images(dtype=torch.float64, targets=None):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(8, 6, generator=generator, dtype=dtype)
    targets = torch.randint(0, 2, (8,), generator=generator) if targets is None else targets
    return DataLoader(TensorDataset(inputs, targets), batch_size=8)


def run(student, teacher, **options):
    algorithm = Distillation(teacher, KLDivergence(1.0), **options)
    return fit(Classifier(student), algorithm, train_dataloader=images())


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("student_too", [True, False])
def test_a_class_that_is_ruled_out_has_no_part_in_the_divergence(student_too, on_nonfinite):
    student, teacher = RuledOut(1, student_too), RuledOut(2)
    (inputs, _), *_ = images()
    with torch.no_grad():
        s, p = student(inputs).softmax(-1), teacher(inputs).softmax(-1)
    kept = [0, 1, 3]
    expected = (p[:, kept] * (p[:, kept].log() - s[:, kept].log())).sum(-1).mean().item()
    trainer = run(student, teacher, on_nonfinite=on_nonfinite)
    assert logged(trainer, "loss/train/kd") == [pytest.approx(expected, rel=1e-6)]
    assert logged(trainer, "distillation/kl") == [pytest.approx(expected, rel=1e-5)]
    assert student.inner.weight.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_still_stop_the_run(value):
    with pytest.raises(ValueError, match="teacher 0 .* hold NaN or infinity at batch 0"):
        run(RuledOut(1, False), RuledOut(2, value=value))


def test_a_loss_that_makes_nan_of_it_still_stops_the_run():
    student = Classifier(RuledOut(1, False))
    with pytest.raises(ValueError, match="teacher 0 .* hold NaN or infinity at batch 0"):
        fit(student, Distillation(RuledOut(2), nn.MSELoss()), train_dataloader=images())


def about_classes(trainer):
    names = {name.removeprefix("distillation/") for name in entries_of(trainer)}
    return names & ABOUT_CLASSES


def numbers(outputs, targets):
    return outputs.square().mean()


@pytest.mark.parametrize("loss", [nn.MSELoss(), LogitMSE(), CosineEmbedding()])
def test_embeddings_are_not_logged_as_classes(loss):
    data = images(torch.float32, torch.zeros(8))
    student = Classifier(nn.Linear(6, WIDTH), numbers)
    trainer = fit(student, Distillation(nn.Linear(6, WIDTH), loss), train_dataloader=data)
    assert len(logged(trainer, "loss/train/kd")) == 1
    assert about_classes(trainer) == set()


@pytest.mark.parametrize("by", ["loss", "labels", "task"])
def test_what_any_of_the_three_calls_classes_is_logged(by):
    net, teacher = nn.Linear(6, WIDTH), nn.Linear(6, WIDTH)
    targets = torch.zeros(8, dtype=torch.long) if by == "labels" else torch.zeros(8, WIDTH)
    loss = KLDivergence(1.0) if by == "loss" else nn.MSELoss()
    student = Classifier(net, numbers)
    if by == "task":
        student = ComposerClassifier(net, num_classes=WIDTH, loss_fn=F.mse_loss)
    data = images(torch.float32, targets)
    trainer = fit(student, Distillation(teacher, loss), train_dataloader=data)
    assert about_classes(trainer) == ABOUT_CLASSES


def test_labels_that_do_not_exclude_each_other_are_not_logged_as_classes():
    student = ComposerClassifier(nn.Linear(6, WIDTH), num_classes=WIDTH, loss_fn=F.mse_loss)
    data = images(torch.float32, torch.zeros(8, WIDTH))
    algorithm = Distillation(nn.Linear(6, WIDTH), BernoulliKL())
    assert about_classes(fit(student, algorithm, train_dataloader=data)) == set()


class Detector(nn.Module):
    """A model of two heads that answers boxes and scores, in this order."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.boxes, self.scores = nn.Linear(6, 4).double(), nn.Linear(6, 3).double()

    def forward(self, inputs):
        inputs = inputs[:, None].expand(-1, 5, -1)
        return self.boxes(inputs), self.scores(inputs)


class Detecting(ComposerClassifier):
    def __init__(self, module):
        super().__init__(module, num_classes=3)

    def loss(self, outputs, batch):
        return outputs[1].square().mean()

    def get_metrics(self, is_train=False):
        return {}


def test_the_first_of_several_tensors_is_not_taken_in_silence(caplog):
    algorithm = Distillation(Detector(2), KLDivergence(1.0))
    fit(Detecting(Detector(1)), algorithm, train_dataloader=images())
    told = "the first of [0] (8, 5, 4), [1] (8, 5, 3) is compared with the teachers' logits"
    assert caplog.text.count(told) == 1
    assert "choose = lambda output: output[1]" in caplog.text


def test_what_was_chosen_of_several_tensors_is_not_told_of(caplog):
    def choose(output):
        return output[1]

    algorithm = Distillation(
        Teacher(Detector(2), output_fn=choose), KLDivergence(1.0), student_output_fn=choose
    )
    student = Detector(1)
    fit(Detecting(student), algorithm, train_dataloader=images())
    assert "the first of" not in caplog.text
    assert torch.equal(student.boxes.weight, Detector(1).boxes.weight)  # no loss reads them
    assert not torch.equal(student.scores.weight, Detector(1).scores.weight)
