"""Cosine distance of hidden states (arXiv 1910.01108)."""

from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import check_alike, clean, mean_of_kept, spread, unit


def hidden_cosine(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, dim: int = -1
) -> Tensor:
    """Return one minus the cosine, a mean over kept positions; see :class:`HiddenCosine`."""
    s, t = clean(student, teacher, mask)
    check_alike(s, t)
    distance = 1.0 - (unit(s, dim) * unit(t, dim)).sum(dim)
    if mask is not None:  # masked vectors are zeros here, whose distance would be 1
        distance = distance * spread(mask, distance)
    return mean_of_kept(distance, mask)


class HiddenCosine(FeatureLoss):
    """One minus the cosine of student and teacher vectors, a mean over the positions that count.

    DistilBERT uses it with weight 1 on the last hidden states, beside 5 for the divergence of the
    logits and 2 for the masked language model's own loss. It does not see lengths. A vector of
    zeros has no direction: its distance is 1.

    Args:
        dim: The axis of the vectors.

    Shape:
        - student, teacher: ``(..., D)``, or the axis of vectors at ``dim``.
        - mask: any number of the first axes.
        - output: a scalar between 0 and 2.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Sanh et al., DistilBERT, arXiv 1910.01108.

    Example:
        >>> import torch
        >>> HiddenCosine()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """

    function = staticmethod(hidden_cosine)

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim
