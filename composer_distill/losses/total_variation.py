"""Total variation distance of softened distributions (arXiv 2307.15190)."""

from torch import Tensor

from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened, through_softmax


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return 0.5 * (student.probs - teacher.probs).abs()


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    difference = student.probs - teacher.probs
    values = 0.5 * difference.abs().sum(-1)
    if not wanted:
        return values, None
    return values, through_softmax(difference.sign_().mul_(0.5), student.probs)[0]


def total_variation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return half the sum of ``|p - q|`` of student and teacher; see :class:`TotalVariation`."""
    formula = Formula(_terms, _rows, squared=False, kernel="TOTAL_VARIATION")
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class TotalVariation(TemperedLoss):
    """Total variation: half the sum of the differences of the probabilities.

    ``0.5 * sum_c |p_c - q_c|``, between 0 and 1. It is symmetric and bounded. Its gradient shrinks
    as 1/T and not as 1/T^2, so that the factor T^2 of the other losses would be wrong here, though
    some libraries apply it. Its gradient is 0 where a probability already agrees.

    Args:
        temperature: T, a number or a schedule. The value is not multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Reference:
        Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation,
        arXiv 2307.15190.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> TotalVariation()(student, teacher)
        tensor(0.2500)
    """

    function = staticmethod(total_variation)
