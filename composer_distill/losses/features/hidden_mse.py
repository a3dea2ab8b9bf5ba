"""Mean squared error of hidden states: FitNets' hints, TinyBERT, PKD."""

from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import check_alike, clean, mean_of_kept, unit


def hidden_mse(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    normalize: bool = False,
    dim: int = -1,
) -> Tensor:
    """Return the squared difference, a mean over kept entries; see :class:`HiddenMSE`."""
    s, t = clean(student, teacher, mask)
    check_alike(s, t)
    if normalize:
        s, t = unit(s, dim), unit(t, dim)
    return mean_of_kept((s - t).square(), mask)


class HiddenMSE(FeatureLoss):
    """Mean squared error of features of one shape.

    ``mean (student - teacher)^2`` over the entries of the positions that count. FitNets' hint where
    a projector stands before it, TinyBERT's loss of hidden states and embeddings likewise. With
    ``normalize`` each vector is divided by its length first, which is PKD's loss.

    Args:
        normalize: Whether to compare directions: vectors of length 1. A vector of zeros stays zero.
        dim: The axis of the vectors, for ``normalize`` alone.

    Shape:
        - student, teacher: ``(*P, ...)``, such as ``(B, L, D)`` or ``(B, C, H, W)``.
        - mask: ``(*P)``, any number of the first axes.
        - output: a scalar.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Romero et al., FitNets, arXiv 1412.6550; Jiao et al., TinyBERT, arXiv 1909.10351; Sun et
        al., Patient Knowledge Distillation, arXiv 1908.09355.

    Example:
        >>> import torch
        >>> HiddenMSE()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]))
        tensor(5.)
    """

    function = staticmethod(hidden_mse)

    def __init__(self, normalize: bool = False, dim: int = -1) -> None:
        super().__init__()
        self.normalize = bool(normalize)
        self.dim = dim
