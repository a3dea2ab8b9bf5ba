"""Decoupled knowledge distillation (arXiv 2203.08679)."""

from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number, check_temperature
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.labelled import labelled_rows, split, where_others


def decoupled_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return T^2 (alpha TCKD + beta NCKD); see :class:`DecoupledKD`."""
    temperature = check_temperature(temperature)
    rows, y = labelled_rows(student, teacher, mask, labels, dim, reduction)
    q, p = split(rows.student, y, temperature), split(rows.teacher, y, temperature)
    target = p.target.exp() * (p.target - q.target) + p.others.exp() * (p.others - q.others)
    others = (p.among_others.exp() * (p.among_others - q.among_others)).sum(1)
    others = where_others(others, q, p)
    return rows.reduce_divergence(temperature**2 * (alpha * target + beta * others))


class DecoupledKD(TemperedLoss):
    """DKD: the KL divergence taken apart into the target class and the others.

    ``T^2 * (alpha TCKD + beta NCKD)`` in nats. With ``p_y`` the teacher's probability of the
    label, TCKD is the KL divergence of ``(p_y, 1 - p_y)``, and NCKD that of the distributions
    among the other classes. ``KL = TCKD + (1 - p_y) NCKD``: plain distillation silences NCKD where
    the teacher is sure, and this does not.

    Where student or teacher rules out every class but the label there is no distribution among the
    others: NCKD of that position is 0, and the position counts in the mean.

    Everything is computed in log space; the reference's ``log`` of a probability can be minus
    infinity, and its masking by -1000 fails in float16. The loss grows with beta: the authors
    raise its weight from 0 over the first 20 epochs (CIFAR) or the first (ImageNet).

    Args:
        alpha: Weight of the target class's divergence.
        beta: Weight of the other classes' divergence: 8 or 2 for CIFAR-100, 0.5 for ImageNet.
        temperature: T, a number or a schedule (1 for ImageNet). The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``, as labels are.

    Raises:
        ValueError: If a weight is not finite, or labels are missing or no classes.

    Reference:
        Zhao et al., Decoupled Knowledge Distillation, arXiv 2203.08679.

    Example:
        >>> import torch
        >>> loss, z = DecoupledKD(), torch.tensor([[3.0, 1.0, 0.0]])
        >>> loss(z, z, labels=torch.tensor([0]))
        tensor(0.)
    """

    needs_labels = True
    function = staticmethod(decoupled_kd)

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 8.0,
        temperature: float | Schedule = 4.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        remedy = "The paper uses alpha 1, beta 8 for CIFAR-100 and 1, 0.5 for ImageNet."
        self.alpha = check_number("alpha", alpha, remedy=remedy)
        self.beta = check_number("beta", beta, remedy=remedy)
