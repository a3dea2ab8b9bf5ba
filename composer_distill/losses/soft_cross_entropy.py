"""Cross-entropy of the student with the teacher as soft labels (arXiv 1503.02531)."""

import torch
from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.kernel import divergence
from composer_distill.losses.rows import check_temperature
from composer_distill.losses.softened import Formula, Softened, add_to_rows


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return teacher.probs * (student.lse - student.logits)


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    values = add_to_rows(-torch.linalg.vecdot(teacher.probs, student.logits), student.lse)
    return values, student.probs.sub_(teacher.probs) if wanted else None


SOFT_CROSS_ENTROPY = Formula(_terms, _rows)


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 4.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``-T^2 sum_c p_c log q_c`` of the softened student and teacher.

    See :class:`SoftCrossEntropy`.
    """
    return divergence(
        SOFT_CROSS_ENTROPY,
        student,
        teacher,
        mask,
        temperature=temperature,
        dim=dim,
        reduction=reduction,
    )


class SoftCrossEntropy(DistillationLoss):
    """Cross-entropy with the teacher's softened distribution as the label.

    ``-T^2 * sum_c p_c log q_c`` in nats. It has exactly the gradient of :class:`KLDivergence`, but
    its minimum is T^2 times the teacher's entropy and not 0, so that the logged value does not
    tell how close the student is. Prefer the divergence unless you compare with code that has
    this.

    Args:
        temperature: T, a number or a schedule. The value is multiplied by T^2.
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
        Hinton, Vinyals and Dean, arXiv 1503.02531.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> SoftCrossEntropy(temperature=1.0)(student, teacher)  # ln 2
        tensor(0.6931)
    """

    temperature: float | Schedule

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(dim, reduction)
        self._number_or_schedule("temperature", temperature)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return soft_cross_entropy(
            student,
            teacher,
            mask,
            temperature=check_temperature(self.temperature),
            dim=self.dim,
            reduction=self.reduction,
        )
