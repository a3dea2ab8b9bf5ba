"""Whether student and teacher can be compared, and in which layout: pure functions of logits."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.terms.task import IGNORED_LABEL


def check_class_axis(batch: Any, student: Tensor, axis: int) -> None:
    """Refuse a loss over the last axis where the labels show that the classes lie on axis 1.

    Args:
        batch: A tuple or list, whose second element may hold class indices.
        student: The student's logits, such as ``(N, C, H, W)``.
        axis: The axis that the loss takes for the classes.

    Raises:
        ValueError: If the labels have the shape of the logits without axis 1 and not without
            ``axis``.
    """
    labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(labels, Tensor) or student.ndim < 3 or axis % student.ndim == 1:
        return
    shape, axis = student.shape, axis % student.ndim
    if labels.shape == shape[:1] + shape[2:] and labels.shape != shape[:axis] + shape[axis + 1 :]:
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
        ValueError: If the shapes differ; torch's losses would broadcast them in silence.
    """
    if student.shape == teacher.shape:
        return
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
    raise ValueError(message)


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
