"""Cross-entropy of the student with the teacher as soft labels (arXiv 1503.02531)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened, add_to_rows, lse


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return teacher.probs * (lse(student) - student.logits)


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    values = add_to_rows(-torch.linalg.vecdot(teacher.probs, student.logits), lse(student))
    return values, student.probs.sub_(teacher.probs) if wanted else None


SOFT_CROSS_ENTROPY = Formula(_terms, _rows, kernel="SOFT_CROSS_ENTROPY")


def soft_cross_entropy(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 4.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``-T^2 sum_c p_c log q_c`` of student and teacher; see :class:`SoftCrossEntropy`."""
    return divergence(SOFT_CROSS_ENTROPY, student, teacher, mask, temperature, dim, reduction)


class SoftCrossEntropy(TemperedLoss):
    """Cross-entropy with the teacher's softened distribution as the label.

    ``-T^2 * sum_c p_c log q_c`` in nats. It has exactly the gradient of :class:`KLDivergence`, but
    its minimum is T^2 times the teacher's entropy and not 0, so that the logged value does not
    tell how close the student is. Prefer the divergence unless you compare with code that has
    this.

    Args:
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Reference:
        Hinton, Vinyals and Dean, arXiv 1503.02531.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> SoftCrossEntropy(temperature=1.0)(student, teacher)  # ln 2
        tensor(0.6931)
    """

    function = staticmethod(soft_cross_entropy)

    def __init__(
        self, temperature: float | Schedule = 4.0, dim: int = -1, reduction: str = "mean"
    ) -> None:
        super().__init__(temperature, dim, reduction)
