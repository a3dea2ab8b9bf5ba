"""Generalised Jensen-Shannon divergence (arXiv 2306.13649)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.kl_divergence import FORWARD_KL
from composer_distill.losses.reverse_kl_divergence import REVERSE_KL
from composer_distill.losses.softened import (
    Formula,
    Softened,
    bounded_log_ratio,
    student_over_mixture,
    through_softmax,
)


def _terms(student: Softened, teacher: Softened, beta: float, scale: float) -> Tensor:
    ratio = bounded_log_ratio(student, teacher)
    over_mixture = student_over_mixture(ratio, beta)
    of_teacher = beta * teacher.probs * (over_mixture + ratio)
    return scale * (of_teacher + (1.0 - beta) * student.probs * over_mixture)


def _rows(
    student: Softened, teacher: Softened, wanted: bool, beta: float, scale: float
) -> tuple[Tensor, Tensor | None]:
    ratio = bounded_log_ratio(student, teacher)
    over_mixture = student_over_mixture(ratio, beta)
    of_teacher = torch.linalg.vecdot(teacher.probs, ratio.add_(over_mixture))
    if wanted:
        gradient, of_student = through_softmax(over_mixture, student.probs)
        gradient.mul_(scale * (1.0 - beta))
    else:
        gradient, of_student = None, torch.linalg.vecdot(student.probs, over_mixture)
    return scale * (beta * of_teacher + (1.0 - beta) * of_student), gradient


def _formula(beta: float, scaled: bool) -> Formula:
    beta, ends = _check(beta, scaled), {0.0: FORWARD_KL, 1.0: REVERSE_KL}
    scale = 1.0 / (beta * (1.0 - beta)) if scaled and beta not in ends else 1.0
    return (
        ends[beta]
        if beta in ends
        else Formula(_terms, _rows, (beta, scale), kernel="JENSEN_SHANNON")
    )


def _check(beta: float, scaled: bool) -> float:
    remedy = "Use 0.5 for the symmetric divergence, or scaled=True, whose ends 0 and 1 are the KLs."
    number = check_number("beta", beta, remedy=remedy)
    inside = 0.0 <= number <= 1.0 if scaled else 0.0 < number < 1.0
    if not inside:
        bounds = "from 0 to 1" if scaled else "between 0 and 1, which make it zero everywhere"
        raise ValueError(f"beta must be {bounds}, got {beta!r}. {remedy}")
    return number


def jensen_shannon_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    beta: float = 0.5,
    scaled: bool = False,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 (beta KL(p || m) + (1 - beta) KL(q || m))``.

    See :class:`JensenShannonDivergence`.
    """
    formula = _formula(beta, scaled)
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class JensenShannonDivergence(TemperedLoss):
    """Generalised Jensen-Shannon divergence.

    ``T^2 * (beta KL(p || m) + (1 - beta) KL(q || m))`` in nats, with the mixture
    ``m = beta p + (1 - beta) q`` of the teacher's ``p`` and the student's ``q``. It is bounded, so
    a class that one of the two rules out does no harm.

    As it stands it vanishes as beta goes to 0 or 1, and so does its gradient: the learning rate
    changes with beta. Libraries that put a KL at the ends therefore jump there (at beta 0.001 to
    0.006, at 0 to 6.57, on random logits). ``scaled=True`` divides by ``beta (1 - beta)``, and then
    the ends are the limits: the forward KL at 0 and the reverse KL at 1.

    Args:
        beta: The teacher's share of the mixture.
        scaled: Whether to divide by ``beta (1 - beta)``.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Raises:
        ValueError: If beta is not between 0 and 1, or one of them where scaled.

    Reference:
        Agarwal et al., On-Policy Distillation of Language Models (GKD), arXiv 2306.13649.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> JensenShannonDivergence(beta=0.5)(student, teacher)
        tensor(0.0338)
        >>> JensenShannonDivergence(beta=0.0, scaled=True)(student, teacher)  # the forward KL
        tensor(0.1308)
    """

    function = staticmethod(jensen_shannon_divergence)

    def __init__(
        self,
        beta: float = 0.5,
        scaled: bool = False,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        self.beta, self.scaled = _check(beta, scaled), bool(scaled)
