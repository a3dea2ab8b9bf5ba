"""The target class and the others: what the losses that need labels share."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_distill.losses.checks import check_dim, check_inputs, check_per_position
from composer_distill.losses.rows import FLOOR, Rows, lay_out

# The label of a position that does not count, in torch and in Hugging Face Transformers.
IGNORED = -100


class TargetAndOthers(NamedTuple):
    """Log-probabilities ``(N,)`` of the target and of all others, and ``(N, C)`` among the others.

    ``among_others`` are the others' own distribution: they add up to one without the target.
    ``any_others``, ``(N,)``, is False where all others are ruled out, so that there is none.
    """

    target: Tensor
    others: Tensor
    among_others: Tensor
    any_others: Tensor


def labelled_rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
    dim: int,
    reduction: str,
) -> tuple[Rows, Tensor]:
    """Check the arguments of a loss with labels, and lay them out as rows.

    Returns:
        The rows and their labels. Positions labelled -100 do not count.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not fit, labels are missing, or a label is no class.
    """
    check_inputs(student, teacher, mask, check_dim(dim))
    checked = check_labels(labels, student, dim)
    mask = without_ignored(mask, checked)
    rows = lay_out(student, teacher, mask, dim, reduction, checked)
    assigned = checked if rows.labels is None else rows.labels
    # On a GPU the look at the values would wait for it; there the gather itself fails.
    if assigned.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_range(assigned, student.shape[dim])
    return rows, assigned


def check_labels(labels: Any, student: Tensor, dim: int) -> Tensor:
    """Return ``labels``; raise unless it has one integer for each position of ``student``."""
    if labels is None:
        raise ValueError(
            "labels are needed by this loss, got None. Call it with labels=, or use a loss that "
            "needs none, such as KLDivergence."
        )
    check_per_position("labels", labels, student, dim)
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(
            f"labels must be integer classes, got {labels.dtype}. Soft labels are not supported: "
            "give the index of the class."
        )
    return labels


def without_ignored(mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Return the mask of the positions that count: those labelled -100 never do."""
    if labels is None:
        return mask
    labelled = labels != IGNORED
    return labelled if mask is None else mask & labelled


def _check_range(labels: Tensor, classes: int) -> None:
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(
            f"labels must be classes from 0 to {classes - 1}, got {int(wrong[0])}. "
            "Label positions that do not count with -100."
        )


def split(logits: Tensor, labels: Tensor, temperature: float) -> TargetAndOthers:
    """Split the softmax of rows of logits at their labels, in log space throughout."""
    # Normalised first: a difference of two large log-sum-exps would keep the rounding of both
    log_probs = (logits.clamp(min=FLOOR) / temperature).log_softmax(1)
    column = labels.unsqueeze(1)
    others = log_probs.scatter(1, column, FLOOR)
    return TargetAndOthers(
        target=log_probs.gather(1, column).squeeze(1),
        others=others.logsumexp(1),
        among_others=others.log_softmax(1),
        # A NaN is not ruled out: it must be seen
        any_others=(~(logits.scatter(1, column, FLOOR) <= FLOOR)).any(1),
    )


def where_others(values: Tensor, student: TargetAndOthers, teacher: TargetAndOthers) -> Tensor:
    """Return one value a row among the others, 0 where either side rules all of them out."""
    return torch.where(student.any_others & teacher.any_others, values, 0.0)
