"""AT: where a network looks, as maps of its activations (arXiv 1612.03928)."""

from torch import Tensor

from composer_distill.losses.checks import check_number
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import (
    check_alike,
    clean,
    mean_of_kept,
    pooled,
    unit,
)


def attention_transfer(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, p: float = 2.0, dim: int = 1
) -> Tensor:
    """Return the squared difference of activation maps; see :class:`AttentionTransfer`."""
    s, t = (x.movedim(dim, 1) for x in clean(student, teacher, mask))
    if mask is None:
        s, t = pooled(s, t)
    of_s, of_t = (_map(x, p) for x in (s, t))
    check_alike(of_s, of_t)
    difference = (of_s - of_t).square()
    if mask is not None and mask.ndim > 1:
        return mean_of_kept(difference, mask.flatten(1))
    return mean_of_kept(difference, mask)


def _map(features: Tensor, p: float) -> Tensor:
    """Return the map of each sample, as a vector of length 1: ``(B, C, *S)`` to ``(B, S)``."""
    maps = features.abs().pow(p).mean(1).flatten(1)
    return unit(maps)


class AttentionTransfer(FeatureLoss):
    """AT: the squared difference of maps of activation.

    A sample's map is ``mean_c |a_c|^p`` over its channels, flattened and divided by its length. The
    value is the mean over samples and places of the squared difference of student's and teacher's
    maps: numbers of channels may differ. Of two resolutions the finer one's features are pooled to
    the coarser. It does not see a factor common to all channels.

    Args:
        p: The power of the activations, at least 1.
        dim: The axis of channels: 1 for images, -1 for tokens.

    Shape:
        - student: ``(B, C_s, *S)``; teacher: ``(B, C_t, *S')``; or the channels at ``dim``.
        - mask: ``(B)``; or the places too, where channels come last: ``(B, L)``.
        - output: a scalar.

    Raises:
        ValueError: If ``p`` is below 1, or the maps can't be compared.

    Reference:
        Zagoruyko and Komodakis, Paying More Attention to Attention, arXiv 1612.03928.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[1.0, 0.0]]]])
        >>> loss = AttentionTransfer()
        >>> loss(student, student.flip(-1)), loss(student, 3 * student)
        (tensor(1.), tensor(0.))
    """

    function = staticmethod(attention_transfer)

    def __init__(self, p: float = 2.0, dim: int = 1) -> None:
        super().__init__()
        self.p = check_number("p", p, remedy="The paper uses 2.")
        if self.p < 1.0:
            raise ValueError(f"p must be at least 1, got {p!r}. The paper uses 2.")
        self.dim = dim
