"""MiniLM's loss of attention distributions (arXiv 2002.10957)."""

import torch
from torch import Tensor

from composer_distill.losses.features.attention import (
    key_and_query,
    number_of_rows,
    sum_of_divergences,
)
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import check_alike, clean


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of attention maps; see :class:`AttentionKL`."""
    s, t = clean(student, teacher)
    check_alike(s, t)
    pairs = key_and_query(mask, s)
    tiny = torch.finfo(s.dtype).tiny
    # A key that nobody reads has probability 0: its logarithm must be finite, and so its gradient
    log_s, log_t = (x.clamp(min=tiny).log() for x in (s, t))
    return sum_of_divergences(log_s, log_t, pairs) / number_of_rows(mask, s)


class AttentionKL(FeatureLoss):
    """Forward KL divergence of attention distributions, a mean over heads and queries.

    ``KL(teacher || student)`` over the keys that count, in nats, each distribution renormalised to
    them; a mean over heads and over the queries that count. MiniLM uses it on the last layer alone,
    beside the same of the values' relations (:class:`MiniLMRelation`). Numbers of heads must be
    equal, widths need not be.

    Shape:
        - student, teacher: ``(B, A, L, L)`` probabilities over the last axis, after the softmax.
        - mask: ``(B, L)``, of keys and queries alike.
        - output: a scalar.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        Wang et al., MiniLM, arXiv 2002.10957.

    Example:
        >>> import torch
        >>> student = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]]]])
        >>> teacher = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]]])
        >>> AttentionKL()(student, teacher)
        tensor(0.6931)
    """

    function = staticmethod(attention_kl)
