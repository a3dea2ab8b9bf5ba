"""From logits of any layout to rows of classes, and from rows to a loss.

A loss that is no divergence of the kernel goes through the same three steps, written here once:
check what came, lay it out as ``(rows, classes)`` with the masked rows left out, and reduce one
value a row, or one term for each entry.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from composer_distill.losses.checks import (
    Reduction,
    check_dim,
    check_inputs,
    check_reduction,
    position_shape,
)
from composer_distill.losses.precision import compute_dtype

# A class at minus infinity is computed as one at this logit: its probability is exactly zero in
# every floating-point type that is computed in, and 0 * log(0) is 0 instead of NaN.
FLOOR = -1e30


class Rows(NamedTuple):
    """Student and teacher as ``(N, C)`` in the type that is computed in.

    ``keep`` is ``None`` where the masked rows are already gone; otherwise it tells them apart, and
    they hold zeros. ``labels`` has one class a row where the loss needs labels. The rest tells
    where the rows came from: the student's logits, the class axis, and how to reduce.
    """

    student: Tensor
    teacher: Tensor
    keep: Tensor | None
    labels: Tensor | None
    like: Tensor
    dim: int
    reduction: Reduction

    def reduce(self, values: Tensor) -> Tensor:
        """Reduce one value a row, ``(N,)``, to the mean over the rows that count, or to their sum.

        For ``'batchmean'`` the sum is divided by the length of the first axis, as in torch.

        Returns:
            A scalar, or for ``'none'`` the shape of the logits without their class axis. Over no
            rows at all the scalar is 0, and it still has a gradient path.
        """
        if self.keep is not None:
            values = torch.where(self.keep, values, 0.0)
        if self.reduction == "none":
            return values.reshape(position_shape(self.like, self.dim))
        total = values.sum()
        if self.reduction == "sum":
            return total
        if self.reduction == "batchmean":
            return total / max(self.like.shape[0], 1)
        if self.keep is None:
            return total / max(values.shape[0], 1)
        return total / self.keep.sum().clamp(min=1)

    def reduce_divergence(self, values: Tensor) -> Tensor:
        """Reduce values that are 0 or more but for rounding: what falls below 0 comes out as 0."""
        return not_below_zero(self.reduce(values))

    def reduce_terms(self, terms: Tensor) -> Tensor:
        """Reduce one term for each entry, ``(N, C)``, to a scalar.

        Returns:
            What :meth:`reduce` does of the sums over classes, but for ``'none'`` the terms
            themselves, in the shape of the logits and zero where masked.
        """
        if self.reduction != "none":
            return self.reduce(terms.sum(-1))
        if self.keep is not None:
            terms = torch.where(self.keep.unsqueeze(1), terms, 0.0)
        moved = (*position_shape(self.like, self.dim), self.like.shape[self.dim])
        return terms.reshape(moved).movedim(-1, self.dim)


def not_below_zero(value: Tensor) -> Tensor:
    """Return ``value``, or 0 where rounding took it below, with its gradient either way."""
    return value + value.detach().neg().clamp(min=0.0)


def as_rows(logits: Tensor, dim: int) -> Tensor:
    """Return ``logits`` as ``(rows, classes)``: a view where the layout allows one."""
    if logits.ndim == 2 and dim in (-1, 1):
        return logits
    return logits.movedim(dim, -1).reshape(-1, logits.shape[dim])


def lay_out(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    dim: int,
    reduction: str,
    labels: Tensor | None = None,
    *,
    fewest: int = 2,
) -> Rows:
    """Check the arguments of a loss, and lay the logits out as rows without the masked ones.

    Under ``torch.compile``, and for a result with an entry a position, they stay, as zeros.

    Args:
        student: The student's logits.
        teacher: The teacher's logits. Their gradient stops here.
        mask: True where a position counts; ``None`` where all do.
        dim: The class axis.
        reduction: As in :meth:`Rows.reduce`.
        labels: One class a position, or ``None``.
        fewest: As in :func:`.check_inputs`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the reduction is unknown, or shapes do not fit.
    """
    chosen = check_reduction(reduction)
    check_inputs(student, teacher, mask, check_dim(dim), fewest)
    dtype = compute_dtype(student, teacher)
    s, t = as_rows(student, dim), as_rows(teacher.detach(), dim)
    y = None if labels is None else labels.reshape(-1).long()
    keep = None if mask is None else mask.reshape(-1)
    if keep is not None and chosen != "none" and not torch.compiler.is_compiling():
        places = keep.nonzero().squeeze(1)  # on a GPU the host waits for it, once
        s, t = s.index_select(0, places), t.index_select(0, places)
        y, keep = None if y is None else y.index_select(0, places), None
    s, t = s.to(dtype), t.to(dtype)
    if keep is not None:
        s, t = (torch.where(keep.unsqueeze(1), x, 0.0) for x in (s, t))
        y = None if y is None else torch.where(keep, y, 0)
    return Rows(s, t, keep, y, student, dim, chosen)
