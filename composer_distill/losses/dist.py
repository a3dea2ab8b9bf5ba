"""DIST: correlations between and within classes (arXiv 2205.10536)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number, check_reduction, check_temperature
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.rows import lay_out, not_below_zero
from composer_distill.losses.softened import soften


def dist(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return one minus the correlations of rows and of columns; see :class:`DIST`."""
    temperature = check_temperature(temperature)
    _check_mean(reduction)
    rows = lay_out(student, teacher, mask, dim, reduction)
    q, p = soften(rows.student, temperature).probs, soften(rows.teacher, temperature).probs
    keep = torch.ones_like(q[:, :1]) if rows.keep is None else rows.keep.unsqueeze(1).to(q.dtype)
    q, p = q * keep, p * keep
    between = _one_minus_correlation(q, p, torch.ones_like(q), 1).sum() / keep.sum().clamp(min=1.0)
    within = _one_minus_correlation(q, p, keep.expand_as(q), 0).mean()
    return beta * not_below_zero(between) + gamma * not_below_zero(within)


def _one_minus_correlation(x: Tensor, y: Tensor, counts: Tensor, axis: int) -> Tensor:
    """Return one minus Pearson's correlation along ``axis``; 0 where one of the two is constant."""
    number = counts.sum(axis, keepdim=True).clamp(min=1.0)
    means = [v.sum(axis, keepdim=True) / number for v in (x, y)]
    x, y = ((v - mean) * counts for v, mean in zip((x, y), means, strict=True))
    squares = x.square().sum(axis), y.square().sum(axis)
    # What rounding leaves of a constant; a NaN is no constant and must be seen
    residue = [
        (number * (8.0 * torch.finfo(mean.dtype).eps * mean.detach()) ** 2).squeeze(axis)
        for mean in means
    ]
    constant = (squares[0] <= residue[0]) | (squares[1] <= residue[1])
    # The root of 0 has an infinite gradient, hence the 1 in its place.
    of_x, of_y = (torch.where(constant, 1.0, square).sqrt() for square in squares)
    return torch.where(constant, 0.0, 1.0 - (x * y).sum(axis) / (of_x * of_y))


def _check_mean(reduction: str) -> None:
    if check_reduction(reduction) != "mean":
        raise ValueError(
            f"reduction must be 'mean' for DIST, got {reduction!r}. Its correlations within a "
            "class run over all positions, so that there is no value for one position."
        )


class DIST(TemperedLoss):
    """DIST: match correlations, not values.

    ``beta (1 - r_between) + gamma (1 - r_within)``: Pearson's correlation of student and teacher
    probabilities over the classes of a position, a mean over positions; and over the positions of
    a class, a mean over classes. It forgives a stronger teacher its scale: with such teachers the
    plain divergence can hurt where this helps.

    The second term relates the positions of one call to each other. The loss of a batch is
    therefore not the mean of the losses of its microbatches, and a batch of one position has no
    second term. Where either side is constant a correlation does not exist and counts as agreement.
    No factor T^2: a correlation has no scale.

    Args:
        beta: Weight of the correlation between classes.
        gamma: Weight of the correlation within classes.
        temperature: T of the softmax, a number or a schedule. The value is not multiplied by T^2.
        dim: The class axis.
        reduction: ``'mean'``, the only one that there is.

    Shape:
        Those of :class:`KLDivergence`.

    Raises:
        ValueError: If a weight is not finite, or the reduction is not ``'mean'``.

    Reference:
        Huang et al., Knowledge Distillation from A Stronger Teacher, arXiv 2205.10536.

    Example:
        >>> import torch
        >>> z = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]])
        >>> DIST()(-z, z).round(decimals=2)
        tensor(3.8400)
    """

    function = staticmethod(dist)

    def __init__(
        self,
        beta: float = 1.0,
        gamma: float = 1.0,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        _check_mean(reduction)
        self.beta = check_number("beta", beta, remedy="The paper uses 1, or 2 for CIFAR-100.")
        self.gamma = check_number("gamma", gamma, remedy="The paper uses 1, or 2 for CIFAR-100.")
