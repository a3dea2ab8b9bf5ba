"""Whether student and teacher can be compared, and in which layout: pure functions of logits."""

import logging
from typing import Any

from torch import Tensor

from composer_distill.losses import BernoulliKL, DistillationLoss
from composer_distill.terms.looking import is_looked_at
from composer_distill.terms.positions import labels_of
from composer_distill.terms.task import IGNORED_LABEL

_log = logging.getLogger(__name__)

_LOOKS = 4  # batches that are all looked at: in a small one each sample may have a single label


class MultiHotWatch:
    """Warns, once, of a softmax over labels that do not exclude each other.

    Args:
        kd_loss_fn: The loss. Only one of ours says whether it compares softmaxes.
    """

    def __init__(self, kd_loss_fn: Any) -> None:
        ours = isinstance(kd_loss_fn, DistillationLoss)
        parts = kd_loss_fn.modules() if ours else ()
        softmax = any(getattr(part, "softmax", False) for part in parts)
        self._watches = softmax
        self._looks = 0

    def look(self, batch: Any, logits: Tensor, axis: int) -> None:
        """Look at the labels of a batch, at the first ones and ever more seldom."""
        if not self._watches:
            return
        self._looks += 1
        if not is_looked_at(self._looks, _LOOKS):
            return
        labels = labels_of(batch)
        if labels is not None and are_multi_hot(labels, logits, axis):
            self._watches = False
            _log.warning(
                "the batch's labels have several classes at a time, or none, where kd_loss_fn "
                "compares softmaxes, whose classes exclude each other. For independent labels use "
                "BernoulliKL."
            )


def are_multi_hot(labels: Tensor, logits: Tensor, axis: int = -1) -> bool:
    """Return whether floating-point labels name any number of classes at each position.

    Args:
        labels: What the batch holds.
        logits: The student's logits.
        axis: Their class axis.

    Example:
        >>> import torch
        >>> logits = torch.zeros(2, 3)
        >>> are_multi_hot(torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]), logits)
        True
        >>> are_multi_hot(torch.tensor([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0]]), logits)  # mixed
        False
    """
    if not labels.is_floating_point() or labels.shape != logits.shape or labels.numel() == 0:
        return False
    are_shares = bool(((labels >= 0) & (labels <= 1)).all())
    return are_shares and not bool(((labels.sum(axis) - 1).abs() < 0.01).all())


def check_class_axis(batch: Any, student: Tensor, axis: int) -> None:
    """Refuse logits without a class axis, and one that the labels show to be another.

    Args:
        batch: It may hold class indices: a tuple's second element, or a mapping's ``labels``.
        student: The student's logits, such as ``(N, C, H, W)``.
        axis: The axis that the loss takes for the classes.

    Raises:
        ValueError: If the logits are one number a sample, or the labels have the shape of the
            logits without axis 1, or a multiple of it, and not without ``axis``.
    """
    if student.ndim < 2:
        raise ValueError(
            f"the student: its logits have shape {tuple(student.shape)}, one number a sample, "
            "where kd_loss_fn compares classes: a softmax over them would run across the batch. "
            "Return logits (N, C); for one logit a sample, (N, 1) with BernoulliKL."
        )
    labels, shape, axis = labels_of(batch), student.shape, axis % max(student.ndim, 1)
    if labels is None or student.ndim < 3 or axis == 1 or labels.ndim != student.ndim - 1:
        return
    elsewhere, here = shape[:1] + shape[2:], shape[:axis] + shape[axis + 1 :]
    finer = student.ndim > 3 and all(
        n % m == 0 for n, m in zip(labels.shape, elsewhere, strict=True)
    )
    if (labels.shape == elsewhere or finer) and labels.shape != here:
        raise ValueError(
            f"kd_loss_fn takes axis {axis} of the student's logits {tuple(shape)} for the classes, "
            f"but labels of shape {tuple(labels.shape)} say that they lie on axis 1. "
            "Pass the loss with dim=1."
        )


def check_shapes(student: Tensor, teacher: Tensor, owner: str, remedy: str | None = None) -> None:
    """Refuse a teacher whose logits do not match the student's, axis by axis.

    Args:
        student: The student's logits.
        teacher: The teacher's logits.
        owner: Which teacher it is, for errors.
        remedy: What to do where only the class axes differ, in place of the usual advice.

    Raises:
        ValueError: If the shapes differ; torch's losses would broadcast them in silence. Where the
            student has no class axis and the teacher has one, it is the student that is named.
    """
    if student.shape == teacher.shape:
        return
    if student.ndim < 2 <= teacher.ndim:
        raise ValueError(
            f"the student: its output has shape {tuple(student.shape)}, no class axis, where "
            f"the logits of {owner} have {tuple(teacher.shape)}.\nReturn the student's logits, or "
            "take them out of its output with Distillation(..., student_output_fn=...)."
        )
    message = (
        f"{owner}: its logits have shape {tuple(teacher.shape)} where the student's have "
        f"{tuple(student.shape)}.\n"
    )
    if student.ndim == teacher.ndim and student.shape[:-1] == teacher.shape[:-1]:
        message += "The class axes differ: " + (
            remedy
            or "use a teacher trained on the student's classes, or map its outputs with "
            "Teacher(..., output_fn=...)."
        )
    else:
        message += (
            "Both must answer the same positions: map its inputs with Teacher(..., input_fn=...) "
            "or its outputs with Teacher(..., output_fn=...)."
        )
        if abs(student.ndim - teacher.ndim) == 1 and 2 in (student.ndim, teacher.ndim):
            message += (
                " If one of the models answers labelled positions alone, as ModernBERT with "
                "sparse_prediction=True does, turn that setting off."
            )
    raise ValueError(message)


def compares_classes(kd_loss_fn: Any) -> bool | None:
    """Return whether a loss says that its logits are of classes that exclude each other.

    Args:
        kd_loss_fn: The loss.

    Returns:
        True and False where it says so, None where it may compare any numbers.
    """
    if not isinstance(kd_loss_fn, DistillationLoss):
        return None
    parts = list(kd_loss_fn.modules())
    if any(getattr(part, "softmax", False) for part in parts):
        return True
    return False if any(isinstance(part, BernoulliKL) for part in parts) else None


def selects_positions(kd_loss_fn: Any, axis: int, ndim: int) -> bool:
    """Return whether a loss gets the kept positions as rows instead of a mask.

    Every callable does, save for our losses where their value depends on the layout: classes that
    are not last, or ``reduction='batchmean'``, which divides by the length of the first axis.

    Args:
        kd_loss_fn: The loss.
        axis: The class axis of the logits.
        ndim: Their number of axes.
    """
    if not isinstance(kd_loss_fn, DistillationLoss):
        return True
    parts = kd_loss_fn.modules()
    by_length = any(getattr(part, "reduction", "mean") == "batchmean" for part in parts)
    return not by_length and axis % ndim == ndim - 1


def labelled(mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Return the positions of a mask that have a label, for losses that need one.

    Args:
        mask: True where a position counts, or None for all.
        labels: One class a position, -100 for none; None where the batch has none.

    Shape:
        - mask, labels, result: the same.

    Example:
        >>> import torch
        >>> labelled(None, torch.tensor([[5, -100]]))
        tensor([[ True, False]])
    """
    if labels is None or labels.ndim < 2:
        return mask
    known = labels != IGNORED_LABEL
    return known if mask is None else mask & known
