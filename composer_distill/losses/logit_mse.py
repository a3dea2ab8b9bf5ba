"""Mean squared error of logits (arXiv 2105.08919)."""

import torch
from torch import Tensor

from composer_distill.losses.functional import FunctionalLoss
from composer_distill.losses.rows import lay_out


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
    rows = lay_out(student, teacher, mask, dim, reduction, fewest=2 if center else 1)
    s, t = rows.student, rows.teacher
    # Equal infinities differ by nothing; their difference alone would be NaN.
    difference = torch.where(s == t, 0.0, s - t)
    if center:
        difference = difference - difference.mean(-1, keepdim=True)
    return rows.reduce_terms(difference.square() / s.shape[-1])


class LogitMSE(FunctionalLoss):
    """Mean squared error of the logits.

    ``sum_c (student_c - teacher_c)^2 / C``: the mean over classes, then over positions, as
    ``torch.nn.MSELoss``. A softmax does not see a constant added to all logits of a position, but
    this does: with ``center`` it does not either, and is then twice the limit of
    :class:`KLDivergence` for high temperatures. It has no temperature and no factor T^2.

    Args:
        center: Whether to subtract the mean over classes from the difference first.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`; for ``'none'`` the squared differences over C.

    Shape:
        Those of :class:`KLDivergence`; so are the errors.

    Reference:
        Kim et al., Comparing Kullback-Leibler Divergence and Mean Squared Error Loss in Knowledge
        Distillation, arXiv 2105.08919.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]])
        >>> LogitMSE()(student, teacher), LogitMSE(center=True)(student, teacher)
        (tensor(5.), tensor(1.))
    """

    function = staticmethod(logit_mse)

    def __init__(self, center: bool = False, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__(dim, reduction)
        self.center = bool(center)
