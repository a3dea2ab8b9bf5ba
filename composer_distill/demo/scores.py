"""How good a model is: four numbers, computed by torchmetrics where it has them."""

from dataclasses import dataclass

import torch
from composer.models import ComposerClassifier
from composer.utils import model_eval_mode
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from composer_distill.demo.data import CLASSES, DigitSet

_BINS = 15


@dataclass(frozen=True)
class Scores:
    """One model on one test set.

    Args:
        accuracy: Share of images whose digit is right.
        nll: Mean negative log-likelihood of the right digit, in nats.
        ece: Expected calibration error over 15 bins of equal width.
        agreement: Share of images for which the teacher answers the same digit.
    """

    accuracy: float
    nll: float
    ece: float
    agreement: float


def score(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Scores:
    """Return the scores of ``logits``.

    Shape:
        logits, teacher_logits: ``(N, C)``; labels: ``(N,)``.
    """
    answers = teacher_logits.argmax(-1)
    probabilities = logits.softmax(-1)
    ece = multiclass_calibration_error(probabilities, labels, CLASSES, n_bins=_BINS)
    return Scores(
        accuracy=_top1(logits, labels),
        nll=F.cross_entropy(logits, labels).item(),
        ece=ece.item(),
        agreement=_top1(logits, answers),
    )


def answer(model: ComposerClassifier, data: DigitSet) -> Tensor:
    """Return the logits of ``model``, in eval mode, for all images of ``data``."""
    with torch.no_grad(), model_eval_mode(model):
        return model(data.tensors)


def _top1(logits: Tensor, answers: Tensor) -> float:
    return multiclass_accuracy(logits, answers, CLASSES, average="micro").item()
