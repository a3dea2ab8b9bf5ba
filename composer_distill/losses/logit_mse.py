"""Mean squared error of logits (arXiv 2105.08919)."""

import torch
from torch import Tensor

from composer_distill.losses.base import DistillationLoss
from composer_distill.losses.rows import check_dim, check_inputs, check_reduction, sum_of_terms


def logit_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    center: bool = False,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return the squared difference of the logits, a mean over classes; see :class:`LogitMSE`."""
    chosen = check_reduction(reduction)
    check_inputs(student, teacher, mask, check_dim(dim))

    def terms(s: Tensor, t: Tensor) -> Tensor:
        # Equal infinities differ by nothing; their difference alone would be NaN.
        difference = torch.where(s == t, 0.0, s - t)
        if center:
            difference = difference - difference.mean(-1, keepdim=True)
        return difference.square() / s.shape[-1]

    return sum_of_terms(terms, student, teacher, mask, dim, chosen)


class LogitMSE(DistillationLoss):
    """Mean squared error of the logits.

    ``sum_c (student_c - teacher_c)^2 / C``: the mean over classes, then over positions, as
    ``torch.nn.MSELoss``. A softmax does not see a constant added to all logits of a position, but
    this does: with ``center`` it does not either, and is then twice the limit of
    :class:`KLDivergence` for high temperatures. It has no temperature and no factor T^2.

    Args:
        center: Whether to subtract the mean over classes from the difference first.
        dim: The class axis.
        reduction: ``'mean'`` over positions, ``'batchmean'``, ``'sum'``, or ``'none'``: the
            squared differences over C.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``.
        - mask: ``(...)``; positions where the mask is false do not count.
        - output: a scalar; for ``'none'`` the shape of the inputs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not fit.

    Reference:
        Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, arXiv 2105.08919.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]])
        >>> LogitMSE()(student, teacher), LogitMSE(center=True)(student, teacher)
        (tensor(5.), tensor(1.))
    """

    def __init__(self, center: bool = False, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim, reduction)
        self.center = bool(center)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the loss."""
        return logit_mse(
            student, teacher, mask, center=self.center, dim=self.dim, reduction=self.reduction
        )
