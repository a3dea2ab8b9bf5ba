"""Adaptive Kullback-Leibler divergence (arXiv 2404.02657)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_share
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened, log_ratio, through_softmax

_REMEDY = "The paper uses 0.5."


def _terms(student: Softened, teacher: Softened, mu: float) -> Tensor:
    head = _head_share(student.probs, teacher.probs, mu)
    ratio = log_ratio(student, teacher)
    return (head * teacher.probs - (1.0 - head) * student.probs) * ratio


def _rows(
    student: Softened, teacher: Softened, wanted: bool, mu: float
) -> tuple[Tensor, Tensor | None]:
    head = _head_share(student.probs, teacher.probs, mu)
    ratio = log_ratio(student, teacher)
    forward = torch.linalg.vecdot(teacher.probs, ratio)
    gradient, reverse = through_softmax(ratio.neg_(), student.probs)
    share = head.squeeze(-1)
    difference = student.probs.sub_(teacher.probs)
    values = share * forward + (1.0 - share) * reverse
    # What is 0 but for the rounding of both, as in KLDivergence
    values = values + (2.0 * share - 1.0) * difference.sum(-1)
    if not wanted:
        return values, None
    return values, gradient.mul_(1.0 - head).add_(difference.mul_(head))


def _head_share(q: Tensor, p: Tensor, mu: float) -> Tensor:
    """Return the share ``(N, 1)`` of the forward KL, a constant to the gradient."""
    p, q = p.detach(), q.detach()
    gap = (p - q).abs()
    descending, order = p.sort(-1, descending=True)
    # The mask belongs to the sorted classes: sort the gaps alike before masking.
    in_head = descending.cumsum(-1) <= mu
    in_head[..., 0] = True  # also where the first class alone exceeds mu, as in the authors' code
    of_head = torch.where(in_head, gap.gather(-1, order), 0.0).sum(-1, keepdim=True)
    total = gap.sum(-1, keepdim=True)
    return of_head / total.clamp(min=torch.finfo(p.dtype).tiny)


def adaptive_kl_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    mu: float = 0.5,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 (w KL(p || q) + (1 - w) KL(q || p))``, w the head's share of the gap.

    See :class:`AdaptiveKLDivergence`.
    """
    formula = Formula(_terms, _rows, (check_share("mu", mu, ends=True, remedy=_REMEDY),))
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class AdaptiveKLDivergence(TemperedLoss):
    """Adaptive KL: forward and reverse KL, weighted by where student and teacher differ.

    ``T^2 * (w KL(p || q) + (1 - w) KL(q || p))`` in nats, with ``w = g_head / (g_head + g_tail)``
    and ``g`` the sum of ``|p - q|`` over a set of classes. The head is those most likely to the
    teacher: the first, and those after it as long as the probabilities add up to no more than mu.
    The weight is a constant to the gradient.

    Args:
        mu: The teacher's probability that bounds the head, from 0 to 1.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Raises:
        ValueError: If mu is not from 0 to 1.

    Reference:
        Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for LLMs,
        arXiv 2404.02657.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> AdaptiveKLDivergence(mu=0.5)(student, teacher)  # half of either KL
        tensor(0.1373)
    """

    function = staticmethod(adaptive_kl_divergence)

    def __init__(
        self,
        mu: float = 0.5,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        self.mu = check_share("mu", mu, ends=True, remedy=_REMEDY)
