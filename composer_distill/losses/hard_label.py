"""Cross-entropy with the teacher's first choice as the label (arXiv 2012.12877)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.base import DistillationLoss
from composer_distill.losses.rows import (
    FLOOR,
    check_dim,
    check_inputs,
    check_reduction,
    reduce_rows,
    select_rows,
)


def hard_label(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy with the teacher's most likely class; see :class:`HardLabel`."""
    chosen = check_reduction(reduction)
    check_inputs(student, teacher, mask, check_dim(dim))
    rows = select_rows(student, teacher, mask, dim, whole=chosen == "none")
    highest, labels = rows.teacher.max(-1)
    values = F.cross_entropy(rows.student.clamp(min=FLOOR), labels, reduction="none")
    values = torch.where(highest.isnan(), highest, values)  # a NaN is no class to learn
    return reduce_rows(values, rows.keep, chosen, student, dim)


class HardLabel(DistillationLoss):
    """Cross-entropy of the student with the class that the teacher finds most likely.

    ``-log softmax(student)_y`` in nats, with ``y = argmax(teacher)``; of equal logits the first.
    It is not 0 where student and teacher agree: only certainty makes it 0. DeiT found it better
    than soft labels for its vision transformers, with a token and a head of its own and half of
    the loss. It has no temperature and no factor T^2.

    Args:
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: a
            value for each position.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``; positions where the mask is false do not count.
        - output: a scalar; for ``'none'`` one value for each position.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not fit.

    Reference:
        Touvron et al., Training data-efficient image transformers, arXiv 2012.12877.

    Example:
        >>> import torch
        >>> HardLabel()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]))  # ln 2
        tensor(0.6931)
    """

    def __init__(self, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim, reduction)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return hard_label(student, teacher, mask, dim=self.dim, reduction=self.reduction)
