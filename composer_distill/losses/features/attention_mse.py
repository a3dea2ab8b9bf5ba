"""TinyBERT's loss of attention scores (arXiv 1909.10351)."""

import torch
from torch import Tensor

from composer_distill.losses.features.attention import key_and_query
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import check_alike, clean

RULED_OUT = -100.0
"""A score at or below this says that a key must not be read, as TinyBERT's code has it."""


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared difference of attention scores; see :class:`AttentionMSE`."""
    s, t = clean(student, teacher)
    check_alike(s, t)
    counts = (s.detach() > RULED_OUT) & (t > RULED_OUT)
    pairs = key_and_query(mask, s)
    if pairs is not None:
        counts = counts & pairs
    s, t = torch.where(counts, s, 0.0), torch.where(counts, t, 0.0)
    return (s - t).square().sum() / counts.sum().clamp(min=1)


class AttentionMSE(FeatureLoss):
    """Mean squared error of attention scores, before their softmax.

    The mean runs over heads and over pairs of a query and a key that both count. A pair that a
    model rules out, by a score of -100 or less, does not count; TinyBERT's code takes it for zero,
    so that it counts in the number of pairs alone. Numbers of heads must be equal.

    Shape:
        - student, teacher: ``(B, A, L, L)`` scores.
        - mask: ``(B, L)``, of keys and queries alike.
        - output: a scalar.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Jiao et al., TinyBERT, arXiv 1909.10351.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
        >>> teacher[..., 1] = -10000.0
        >>> AttentionMSE()(student, teacher)
        tensor(1.)
    """

    function = staticmethod(attention_mse)
