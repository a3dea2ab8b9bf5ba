"""Skew Kullback-Leibler divergence (arXiv 2402.03898)."""

import torch
from torch import Tensor

from composer_distill.losses.checks import check_share
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import SkewedLoss
from composer_distill.losses.softened import (
    Formula,
    Softened,
    bounded_log_ratio,
    student_over_mixture,
    surplus,
    through_softmax,
)

_REMEDY = "DistiLLM uses 0.1; for 0 use KLDivergence."


def _terms(student: Softened, teacher: Softened, alpha: float) -> Tensor:
    ratio = bounded_log_ratio(student, teacher)
    return teacher.probs * (ratio + student_over_mixture(ratio, alpha))


def _rows(
    student: Softened, teacher: Softened, wanted: bool, alpha: float
) -> tuple[Tensor, Tensor | None]:
    ratio = bounded_log_ratio(student, teacher)
    over_mixture = ratio.add_(student_over_mixture(ratio, alpha))
    values = torch.linalg.vecdot(teacher.probs, over_mixture)
    values = values - (1.0 - alpha) * surplus(student, teacher)
    if not wanted:
        return values, None
    direction = over_mixture.exp_().mul_(alpha - 1.0)
    return values, through_softmax(direction, student.probs)[0]


def skew_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 KL(p || alpha p + (1 - alpha) q)``; see :class:`SkewKLDivergence`."""
    arguments = (check_share("alpha", alpha, remedy=_REMEDY),)
    formula = Formula(_terms, _rows, arguments, kernel="SKEW")
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class SkewKLDivergence(SkewedLoss):
    """Skew KL: from the teacher to a mixture of teacher and student.

    ``T^2 * KL(p || alpha p + (1 - alpha) q)`` in nats. A little of the teacher in the mixture
    bounds the loss by ``-log(alpha)`` and tames the gradient where the student is far off.

    The reference code leaves the teacher's entropy out, so that its minimum is not 0; here it is.

    Args:
        alpha: The teacher's share of the mixture, between 0 and 1.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Raises:
        ValueError: If alpha is not between 0 and 1.

    Reference:
        Ko et al., DistiLLM, arXiv 2402.03898.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> SkewKLDivergence(alpha=0.1)(student, teacher)
        tensor(0.1070)
    """

    function = staticmethod(skew_kl_divergence)
    remedy = _REMEDY
