"""VID: a bound on the mutual information of student and teacher (arXiv 1904.05835)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_distill.losses.checks import check_number
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import check_alike, clean, mean_of_kept, spread

_REMEDY = "RepDistiller's code uses 5."
_EPS = 1e-5


def variational_information(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    variance: Tensor,
    dim: int = 1,
) -> Tensor:
    """Return the negative log-likelihood of the teacher; see :class:`VariationalInformation`.

    Args:
        student: The means that were predicted from the student.
        teacher: What they predict.
        mask: True where a position counts, None where all do.
        variance: The variance of each channel, ``(C)``.
        dim: The axis of channels.
    """
    s, t = clean(student, teacher, mask)
    check_alike(s, t)
    if variance.shape != (t.shape[dim],):
        raise ValueError(
            f"variance must have one value for each of the teacher's {t.shape[dim]} channels, got "
            f"the shape {tuple(variance.shape)}. Set channels to the teacher's."
        )
    shape = [1] * t.ndim
    shape[dim] = -1
    of_channel = variance.to(t.dtype).reshape(shape)
    nats = 0.5 * (of_channel.log() + (s - t).square() / of_channel)
    if mask is not None:
        nats = nats * spread(mask, nats)
    return mean_of_kept(nats, mask)


class VariationalInformation(FeatureLoss):
    """VID: the negative log-likelihood of the teacher's features under a Gaussian from the student.

    ``log sigma_c + (t - mu(s))^2 / (2 sigma_c^2)``, in nats and without the constant, a mean over
    entries. mu is the term's projector: give one, ``"conv1x1"`` or a module. The variance of each
    channel is a parameter of the loss, trained as the projector is. The value may be negative, and
    agreement is not 0.

    Args:
        channels: The teacher's number of channels; None to take it from the first call.
        variance: The variance at the start.
        dim: The axis of channels: 1 for images, -1 for tokens.

    Shape:
        - student, teacher: ``(B, C, ...)``, or the channels at ``dim``.
        - mask: any number of the first axes.
        - output: a scalar.

    Raises:
        ValueError: If the shapes differ, or the variance is not above 1e-5.

    Reference:
        Ahn et al., Variational Information Distillation for Knowledge Transfer, arXiv 1904.05835.

    Example:
        >>> import torch
        >>> loss = VariationalInformation(channels=3, variance=1.0)
        >>> loss(torch.zeros(2, 3), torch.ones(2, 3)).round(decimals=4)
        tensor(0.5000, grad_fn=<RoundBackward1>)
    """

    function = staticmethod(variational_information)
    scale: nn.Parameter

    def __init__(self, channels: int | None = None, variance: float = 5.0, dim: int = 1) -> None:
        super().__init__()
        self._start = check_number("variance", variance, above=_EPS, remedy=_REMEDY)
        self.channels = channels
        self.dim = dim
        if channels is None:
            self.scale = nn.UninitializedParameter()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self.scale = nn.Parameter(self._first_scale(torch.empty(channels)))

    @property
    def variance(self) -> Tensor:
        """The variance of each channel, ``(C)``."""
        return F.softplus(self.scale.float()) + _EPS

    def forward(self, student: Any, teacher: Any, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar; the first call tells how many channels there are."""
        if isinstance(self.scale, nn.UninitializedParameter):
            self.scale.materialize((teacher.shape[self.dim],), device=teacher.device)
            self._first_scale(self.scale.data)
        return super().forward(student, teacher, mask)

    def _first_scale(self, tensor: Tensor) -> Tensor:
        """Fill a tensor with what softplus turns into the first variance."""
        target = self._start - _EPS
        return tensor.fill_(target + math.log(-math.expm1(-target)))

    def __repr__(self) -> str:
        given = f"channels={self.channels}, variance={self._start}, dim={self.dim}"
        return f"VariationalInformation({given})"
