"""Total variation distance of softened distributions."""

from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.kernel import divergence
from composer_distill.losses.rows import check_temperature
from composer_distill.losses.softened import Formula, Softened, through_softmax


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return 0.5 * (student.probs - teacher.probs).abs()


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    difference = student.probs - teacher.probs
    values = 0.5 * difference.abs().sum(-1)
    if not wanted:
        return values, None
    return values, through_softmax(difference.sign_().mul_(0.5), student.probs)[0]


TOTAL_VARIATION = Formula(_terms, _rows)


def total_variation(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return half the sum of ``|p - q|`` of the softened student and teacher.

    See :class:`TotalVariation`.
    """
    return divergence(
        TOTAL_VARIATION,
        student,
        teacher,
        mask,
        temperature=temperature,
        dim=dim,
        reduction=reduction,
        squared=False,
    )


class TotalVariation(DistillationLoss):
    """Total variation: half the sum of the differences of the probabilities.

    ``0.5 * sum_c |p_c - q_c|``, between 0 and 1. It is symmetric and bounded. Its gradient shrinks
    as 1/T and not as 1/T^2, so that the factor T^2 of the other losses would be wrong here, though
    some libraries apply it. Its gradient is 0 where a probability already agrees.

    Args:
        temperature: T, a number or a schedule. The value is not multiplied by T^2.
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: the terms.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``, boolean; positions that are false do not count.
        - output: a scalar; for ``'none'`` the shape of the inputs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the temperature is not positive and finite, or shapes do not fit.

    Reference:
        Wen et al., f-Divergence Minimization for Sequence-Level Knowledge Distillation,
        arXiv 2307.15190.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> TotalVariation()(student, teacher)
        tensor(0.2500)
    """

    temperature: float | Schedule

    def __init__(
        self,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim, reduction)
        self._number_or_schedule("temperature", temperature)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return total_variation(
            student,
            teacher,
            mask,
            temperature=check_temperature(self.temperature),
            dim=self.dim,
            reduction=self.reduction,
        )
