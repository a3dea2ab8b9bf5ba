"""Reverse Kullback-Leibler divergence of softened distributions (arXiv 2306.08543)."""

import torch
from torch import Tensor

from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import (
    Formula,
    Softened,
    log_ratio,
    surplus,
    through_softmax,
)


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return -student.probs * log_ratio(student, teacher)


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    log_ratio_of_student = log_ratio(student, teacher).neg_()
    if wanted:
        gradient, values = through_softmax(log_ratio_of_student, student.probs)
    else:
        gradient, values = None, torch.linalg.vecdot(student.probs, log_ratio_of_student)
    return values + surplus(student, teacher), gradient


REVERSE_KL = Formula(_terms, _rows, kernel="REVERSE")


def reverse_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 KL(q || p)`` of student and teacher; see :class:`ReverseKLDivergence`."""
    return divergence(REVERSE_KL, student, teacher, mask, temperature, dim, reduction)


class ReverseKLDivergence(TemperedLoss):
    """Reverse KL: from the student's softened distribution ``q`` to the teacher's ``p``.

    ``T^2 * sum_c q_c (log q_c - log p_c)`` in nats. It asks the student to avoid what the teacher
    finds unlikely, not to cover all that the teacher finds likely: use it on the student's own
    samples or to fine-tune. Trained from scratch with it a language model ends far behind.

    Args:
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Reference:
        Gu et al., MiniLLM, arXiv 2306.08543.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> ReverseKLDivergence()(student, teacher)
        tensor(0.1438)
    """

    function = staticmethod(reverse_kl_divergence)
