"""Improved Kullback-Leibler divergence in its O(C) closed form (arXiv 2305.13948)."""

import torch
from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.rows import (
    check_dim,
    check_inputs,
    check_number,
    check_reduction,
    check_temperature,
    reduce_rows,
    select_rows,
)
from composer_distill.losses.softened import log_ratio, soften


def ikl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    weight_temperature: float = 100.0,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``alpha T^2 KL(p || q)`` plus beta times the weighted MSE of logit differences.

    See :class:`IKL`.
    """
    temperature, chosen = check_temperature(temperature), check_reduction(reduction)
    check_inputs(student, teacher, mask, check_dim(dim))
    weight_temperature = check_temperature(weight_temperature, "weight_temperature")
    rows = select_rows(student, teacher, mask, dim, whole=chosen == "none")
    q, p = soften(rows.student, temperature), soften(rows.teacher, temperature)
    weights = soften(rows.teacher, weight_temperature).probs
    # What the teacher rules out has no weight; its difference may be infinite.
    matters = (weights > 0) & rows.student.isfinite()
    difference = torch.where(matters, rows.teacher - rows.student, 0.0)
    mean = (weights * difference).sum(-1, keepdim=True)
    variance = (weights * (difference - mean).square()).sum(-1)
    divergence = temperature**2 * (p.probs * log_ratio(q, p)).sum(-1)
    values = alpha * divergence + 0.5 * beta * variance
    return reduce_rows(values, rows.keep, chosen, student, dim)


class IKL(DistillationLoss):
    """Improved KL: the divergence and a weighted MSE of logit differences, decoupled.

    ``alpha T^2 KL(p || q) + beta/4 sum_jk w_j w_k (d_j - d_k)^2`` with ``d = teacher - student``
    and ``w = softmax(teacher / weight_temperature)``. The double sum is twice the variance of d
    under w, so that ``beta/2 Var_w(d)`` has the same value and gradient at C operations a
    position; the authors' code makes a C by C matrix for each.

    The paper's first term is a cross-entropy. This one leaves the teacher's entropy out: the same
    gradient, and 0 where student and teacher agree.

    Args:
        alpha: Weight of the divergence.
        beta: Weight of the MSE.
        weight_temperature: Softens the weights of the classes; at 100 they are nearly equal.
        temperature: T of the divergence, a number or a schedule. It is multiplied by T^2.
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: a
            value for each position.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``; positions where the mask is false do not count.
        - output: a scalar; for ``'none'`` one value for each position.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is not finite or a temperature not positive, or shapes do not fit.

    Reference:
        Cui et al., Decoupled Kullback-Leibler Divergence Loss, arXiv 2305.13948.

    Example:
        >>> import torch
        >>> IKL()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]))
        tensor(0.8278)
    """

    temperature: float | Schedule

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight_temperature: float = 100.0,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim, reduction)
        remedy = "The paper uses 1."
        self.alpha = check_number("alpha", alpha, remedy=remedy)
        self.beta = check_number("beta", beta, remedy=remedy)
        self.weight_temperature = check_temperature(weight_temperature, "weight_temperature")
        self._number_or_schedule("temperature", temperature)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return ikl(
            student,
            teacher,
            mask,
            alpha=self.alpha,
            beta=self.beta,
            weight_temperature=self.weight_temperature,
            temperature=check_temperature(self.temperature),
            dim=self.dim,
            reduction=self.reduction,
        )
