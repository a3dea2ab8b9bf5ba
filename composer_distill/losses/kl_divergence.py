"""Forward Kullback-Leibler divergence of softened distributions (arXiv 1503.02531)."""

import torch
from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened, log_ratio, lse_gap


def _terms(student: Softened, teacher: Softened) -> Tensor:
    return teacher.probs * log_ratio(student, teacher)


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    ratio = teacher.logits - student.logits
    if student.peak is None or teacher.peak is None:
        values = ratio.mul_(teacher.probs)
        return values, student.probs.sub_(teacher.probs) if wanted else None
    # Adding the difference of the log-sum-exps to the sum instead of to each term saves a pass.
    gap = lse_gap(student.peak, teacher.peak).squeeze(-1)
    values = torch.linalg.vecdot(teacher.probs, ratio) + gap
    gradient = student.probs.sub_(teacher.probs)
    # No term of sum_c [p log(p / q) + q - p] is negative: near agreement the second sum, 0 but for
    # rounding, takes the rounding of the log-sum-exps away.
    return values + gradient.sum(-1), gradient if wanted else None


FORWARD_KL = Formula(_terms, _rows, kernel="FORWARD")


def kl_divergence(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 4.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return ``T^2 KL(softmax(teacher/T) || softmax(student/T))``; see :class:`KLDivergence`."""
    return divergence(FORWARD_KL, student, teacher, mask, temperature, dim, reduction)


class KLDivergence(TemperedLoss):
    """Forward KL: from the teacher's softened distribution ``p`` to the student's ``q``.

    ``T^2 * sum_c p_c (log p_c - log q_c)`` in nats, with ``p = softmax(teacher / T)`` and
    ``q = softmax(student / T)``. It is 0 where student and teacher agree and positive elsewhere;
    rounding never takes it below 0.

    Args:
        temperature: T, positive: a number, or a schedule. The factor T^2 keeps the size of the
            gradient while T changes (Hinton, Vinyals and Dean, section 2). As T grows the loss
            tends to half the mean squared difference of the centred logits.
        dim: The axis of the softmax, that is of the classes.
        reduction: ``'mean'``: the mean over positions, whatever their number of axes. Note that
            torch's own ``'mean'`` divides by the classes too. ``'batchmean'``: the sum over the
            length of the first axis, as in torch, mask or not. ``'sum'``: the sum. ``'none'``: the
            terms, one for each entry of the inputs.
        softmax_dim: An older name of ``dim``.

    Shape:
        - student, teacher: ``(..., C)``, or the class axis at ``dim``; any floating-point type.
          float16 and bfloat16 are computed in float32.
        - mask: ``(...)``, boolean; positions that are false do not count.
        - output: a scalar of type float32 (float64 for float64 logits); for ``'none'`` the shape
          of the inputs.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the temperature is not positive and finite, the reduction is unknown, or
            shapes do not fit.

    Reference:
        Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, arXiv 1503.02531.

    Example:
        >>> import torch
        >>> loss = KLDivergence(temperature=1.0)
        >>> student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 2.0]]).log1p()
        >>> loss(student, teacher)  # ln 2 less the entropy of (1/4, 3/4)
        tensor(0.1308)
        >>> loss(teacher, teacher)
        tensor(0.)
    """

    function = staticmethod(kl_divergence)

    def __init__(
        self,
        temperature: float | Schedule = 4.0,
        dim: int = -1,
        reduction: str = "mean",
        *,
        softmax_dim: int | None = None,
    ) -> None:
        if softmax_dim is not None:
            if dim not in (-1, softmax_dim):
                raise ValueError(
                    f"dim and softmax_dim are one argument, got dim={dim!r} and "
                    f"softmax_dim={softmax_dim!r}. Give dim only."
                )
            dim = softmax_dim
        super().__init__(temperature, dim, reduction)
