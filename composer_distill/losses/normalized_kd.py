"""Normalised knowledge distillation (arXiv 2303.13005)."""

from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_number, check_temperature
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.labelled import labelled_rows, split, where_others


def normalized_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    gamma: float = 1.5,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``-p_y log q_y`` plus gamma T^2 times the others' cross-entropy.

    See :class:`NormalizedKD`.
    """
    temperature = check_temperature(temperature)
    rows, y = labelled_rows(student, teacher, mask, labels, dim, reduction)
    q, p = split(rows.student, y, 1.0), split(rows.teacher, y, 1.0)
    of_label = -p.target.exp() * q.target
    if temperature != 1.0:
        q, p = split(rows.student, y, temperature), split(rows.teacher, y, temperature)
    # The label itself is at the floor among the others: exp gives 0, and its product is 0.
    of_others = where_others(-(p.among_others.exp() * q.among_others).sum(1), q, p)
    return rows.reduce(of_label + gamma * temperature**2 * of_others)


class NormalizedKD(TemperedLoss):
    """NKD: soft cross-entropy on the label, and among the other classes normalised.

    ``-p_y log q_y - gamma T^2 sum_{c != y} p'_c log q'_c`` in nats: the first term without
    temperature, the second over the distributions ``p'``, ``q'`` among the classes other than the
    label, at temperature T and multiplied by T^2. Both terms are cross-entropies, as in the paper:
    the loss is not 0 where student and teacher agree, and its minimum is not there, because the
    first term alone wants ``q_y`` to be 1.

    Where student or teacher rules out every class but the label there is no distribution among the
    others: the second term of that position is 0, and the position counts in the mean.

    Args:
        gamma: Weight of the other classes.
        temperature: T of the second term, a number or a schedule. That term is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``, as labels are.

    Raises:
        ValueError: If gamma is not finite, or labels are missing or no classes.

    Reference:
        Yang et al., From Knowledge Distillation to Self-Knowledge Distillation, arXiv 2303.13005.

    Example:
        >>> import torch
        >>> loss, z = NormalizedKD(), torch.tensor([[3.0, 1.0, 1.0]])
        >>> loss(z, z, labels=torch.tensor([0]))  # 0.787 * 0.240 + 1.5 ln 2
        tensor(1.2282)
    """

    needs_labels = True
    function = staticmethod(normalized_kd)

    def __init__(
        self,
        gamma: float = 1.5,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        self.gamma = check_number("gamma", gamma, remedy="The paper uses 1.5.")
