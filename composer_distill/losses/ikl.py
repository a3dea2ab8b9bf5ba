"""Improved Kullback-Leibler divergence in its O(C) closed form (arXiv 2305.13948)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number, check_temperature
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.rows import lay_out
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
    temperature = check_temperature(temperature)
    weight_temperature = check_temperature(weight_temperature, "weight_temperature")
    rows = lay_out(student, teacher, mask, dim, reduction)
    q, p = soften(rows.student, temperature), soften(rows.teacher, temperature)
    weights = soften(rows.teacher, weight_temperature).probs
    # What the teacher rules out has no weight; its difference may be infinite.
    matters = (weights > 0) & rows.student.isfinite()
    difference = torch.where(matters, rows.teacher - rows.student, 0.0)
    mean = (weights * difference).sum(-1, keepdim=True)
    variance = (weights * (difference - mean).square()).sum(-1)
    divergence = temperature**2 * (p.probs * log_ratio(q, p)).sum(-1)
    return rows.reduce_divergence(alpha * divergence + 0.5 * beta * variance)


class IKL(TemperedLoss):
    """Improved KL: the divergence and a weighted MSE of logit differences, decoupled.

    ``alpha T^2 KL(p || q) + beta/4 sum_jk w_j w_k (d_j - d_k)^2`` with ``d = teacher - student``
    and ``w = softmax(teacher / weight_temperature)``. The double sum is twice the variance of d
    under w, so that ``beta/2 Var_w(d)`` has the same value and gradient at C operations a
    position; the authors' code makes a C by C matrix for each.

    Its authors' code does not multiply the divergence by T^2: their alpha is T^2 times this one.
    The paper's first term is a cross-entropy. This one leaves the teacher's entropy out: the same
    gradient, and 0 where student and teacher agree.

    Args:
        alpha: Weight of the divergence.
        beta: Weight of the MSE.
        weight_temperature: Softens the weights of the classes; at 100 they are nearly equal.
        temperature: T of the divergence, a number or a schedule. It is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``.

    Raises:
        ValueError: If a number is not finite or a temperature not positive.

    Reference:
        Cui et al., Decoupled Kullback-Leibler Divergence Loss, arXiv 2305.13948.

    Example:
        >>> import torch
        >>> IKL()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, -1.0]]))
        tensor(0.8278)
    """

    function = staticmethod(ikl)

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight_temperature: float = 100.0,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        remedy = "The paper uses 1."
        self.alpha = check_number("alpha", alpha, remedy=remedy)
        self.beta = check_number("beta", beta, remedy=remedy)
        self.weight_temperature = check_temperature(weight_temperature, "weight_temperature")
