"""NST: what a network's neurons select (arXiv 1707.01219)."""

import torch
from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import clean, mean_of_kept, pooled, unit
from composer_distill.losses.precision import full_precision


def neuron_selectivity(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, dim: int = 1
) -> Tensor:
    """Return the maximum mean discrepancy of channels; see :class:`NeuronSelectivity`."""
    s, t = (x.movedim(dim, 1) for x in clean(student, teacher, mask))
    if mask is None or mask.ndim == 1:
        s, t = pooled(s, t)
    s, t = (unit(x.flatten(2)) for x in (s, t))
    if s.shape[2] != t.shape[2]:
        raise ValueError(
            f"student and teacher must have the same places, got {s.shape[2]} and {t.shape[2]}. "
            "Choose layers of one resolution."
        )
    with full_precision(s):
        value = _kernel(s, s) + _kernel(t, t) - 2.0 * _kernel(s, t)
    return mean_of_kept(value, mask if mask is None or mask.ndim == 1 else mask.flatten(1).any(1))


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of (x . y)^2 over channels x of ``a`` and y of ``b``: ``(B,)``."""
    return torch.bmm(a, b.transpose(1, 2)).square().mean((1, 2))


class NeuronSelectivity(FeatureLoss):
    """NST: maximum mean discrepancy of the student's channels from the teacher's.

    The map of each channel is divided by its length; with the kernel ``k(x, y) = (x . y)^2`` the
    value is ``mean k(s, s') + mean k(t, t') - 2 mean k(s, t)`` over channels, a mean over samples.
    It asks for the same set of maps, whichever channel has which, and numbers of channels may
    differ. Of two resolutions the finer one is pooled to the coarser.

    Args:
        dim: The axis of channels: 1 for images, -1 for tokens.

    Shape:
        - student: ``(B, C_s, *S)``; teacher: ``(B, C_t, *S')``; or the channels at ``dim``.
        - mask: ``(B)``; or the places too, where channels come last: ``(B, L)``.
        - output: a scalar.

    Reference:
        Huang and Wang, Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, arXiv
        1707.01219.

    Example:
        >>> import torch
        >>> student = torch.eye(2).reshape(1, 2, 1, 2)
        >>> loss = NeuronSelectivity()
        >>> loss(student, student.flip(1)), loss(student, student[:, :1])
        (tensor(0.), tensor(0.5000))
    """

    function = staticmethod(neuron_selectivity)

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
