"""Reverse skew Kullback-Leibler divergence (arXiv 2402.03898)."""

# torch.compile cannot trace the definition of a function whose annotations are a union.
from __future__ import annotations

import torch
from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.kernel import divergence
from composer_distill.losses.rows import check_number, check_temperature
from composer_distill.losses.softened import (
    Formula,
    Softened,
    bounded_log_ratio,
    student_over_mixture,
    through_softmax,
)


def _formula(alpha: float) -> Formula:
    alpha = _check(alpha)

    def terms(student: Softened, teacher: Softened) -> Tensor:
        ratio = bounded_log_ratio(student, teacher)
        return student.probs * student_over_mixture(ratio, 1.0 - alpha)

    def rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
        over_mixture = student_over_mixture(bounded_log_ratio(student, teacher), 1.0 - alpha)
        values = torch.linalg.vecdot(student.probs, over_mixture)
        if not wanted:
            return values, None
        direction = over_mixture.sub_(over_mixture.exp().mul_(alpha))
        return values, through_softmax(direction, student.probs)[0]

    return Formula(terms, rows)


def _check(alpha: float) -> float:
    remedy = "DistiLLM uses 0.1; for 0 use ReverseKLDivergence."
    number = check_number("alpha", alpha, remedy=remedy)
    if not 0.0 < number < 1.0:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha!r}. {remedy}")
    return number


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
    return divergence(
        _formula(alpha),
        student,
        teacher,
        mask,
        temperature=temperature,
        dim=dim,
        reduction=reduction,
    )


class ReverseSkewKLDivergence(DistillationLoss):
    """Reverse skew KL: from the student to a mixture of student and teacher.

    ``T^2 * KL(q || alpha q + (1 - alpha) p)`` in nats. A little of the student in the mixture
    bounds the loss by ``-log(alpha)`` also where the teacher rules a class out.

    Args:
        alpha: The student's share of the mixture, between 0 and 1.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: the terms.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``, boolean; positions that are false do not count.
        - output: a scalar; for ``'none'`` the shape of the inputs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If alpha is not between 0 and 1, or shapes do not fit.

    Reference:
        Ko et al., DistiLLM, arXiv 2402.03898.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> ReverseSkewKLDivergence(alpha=0.1)(student, teacher)
        tensor(0.1131)
    """

    temperature: float | Schedule

    def __init__(
        self,
        alpha: float = 0.1,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim, reduction)
        self.alpha = _check(alpha)
        self._number_or_schedule("temperature", temperature)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return reverse_skew_kl_divergence(
            student,
            teacher,
            mask,
            alpha=self.alpha,
            temperature=check_temperature(self.temperature),
            dim=self.dim,
            reduction=self.reduction,
        )
