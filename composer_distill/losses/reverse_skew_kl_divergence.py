"""Reverse skew Kullback-Leibler divergence (arXiv 2402.03898)."""

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

_REMEDY = "DistiLLM uses 0.1; for 0 use ReverseKLDivergence."


def _terms(student: Softened, teacher: Softened, alpha: float) -> Tensor:
    ratio = bounded_log_ratio(student, teacher)
    return student.probs * student_over_mixture(ratio, 1.0 - alpha)


def _rows(
    student: Softened, teacher: Softened, wanted: bool, alpha: float
) -> tuple[Tensor, Tensor | None]:
    over_mixture = student_over_mixture(bounded_log_ratio(student, teacher), 1.0 - alpha)
    values = torch.linalg.vecdot(student.probs, over_mixture)
    values = values + (1.0 - alpha) * surplus(student, teacher)
    if not wanted:
        return values, None
    direction = over_mixture.sub_(over_mixture.exp().mul_(alpha))
    return values, through_softmax(direction, student.probs)[0]


def reverse_skew_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    alpha: float = 0.1,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 KL(q || alpha q + (1 - alpha) p)``; see :class:`ReverseSkewKLDivergence`."""
    arguments = (check_share("alpha", alpha, remedy=_REMEDY),)
    formula = Formula(_terms, _rows, arguments, kernel="REVERSE_SKEW")
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class ReverseSkewKLDivergence(SkewedLoss):
    """Reverse skew KL: from the student to a mixture of student and teacher.

    ``T^2 * KL(q || alpha q + (1 - alpha) p)`` in nats. A little of the student in the mixture
    bounds the loss by ``-log(alpha)`` also where the teacher rules a class out.

    Args:
        alpha: The student's share of the mixture, between 0 and 1.
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
        >>> ReverseSkewKLDivergence(alpha=0.1)(student, teacher)
        tensor(0.1131)
    """

    function = staticmethod(reverse_skew_kl_divergence)
    remedy = _REMEDY
