"""MiniLMv2: relations between positions, in heads of their own (arXiv 2012.15828)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from composer_distill.losses.features.attention import (
    key_and_query,
    number_of_rows,
    sum_of_divergences,
)
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.chunks import sum_in_chunks
from composer_distill.losses.features.inputs import clean
from composer_distill.losses.precision import full_precision


def minilm_relation(
    student: Tensor | Sequence[Tensor],
    teacher: Tensor | Sequence[Tensor],
    mask: Tensor | None = None,
    *,
    relation_heads: int = 48,
) -> Tensor:
    """Return KL(teacher || student) of relations; see :class:`MiniLMRelation`."""
    ours = [student] if isinstance(student, Tensor) else list(student)
    theirs = [teacher] if isinstance(teacher, Tensor) else list(teacher)
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            "student and teacher must have the same relations, got "
            f"{len(ours)} and {len(theirs)}. Give queries, keys and values of both."
        )
    values = [_relation(s, t, mask, relation_heads) for s, t in zip(ours, theirs, strict=True)]
    return torch.stack(values).sum()


def _relation(student: Tensor, teacher: Tensor, mask: Tensor | None, heads: int) -> Tensor:
    """Return the divergence of one kind of relation."""
    s, t = clean(student, teacher, mask)
    s, t = _split("student", s, heads), _split("teacher", t, heads)
    positions = s.shape[2]
    if t.shape[2] != positions:
        raise ValueError(
            f"student and teacher must have the same positions, got {positions} and {t.shape[2]}. "
            "Use models that cut the input into the same tokens."
        )
    maps = s.new_empty(()).expand(len(s), heads, positions, positions)
    pairs = key_and_query(mask, maps)
    sliced = (s, t) if pairs is None else (s, t, pairs)
    with full_precision(s):
        total = sum_in_chunks(_divergence, sliced, heads * positions**2)
    return total / number_of_rows(mask, maps)


def _divergence(student: Tensor, teacher: Tensor, pairs: Tensor | None = None) -> Tensor:
    s, t = (x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1]) for x in (student, teacher))
    return sum_of_divergences(s, t, pairs)


def _split(name: str, vectors: Tensor, heads: int) -> Tensor:
    """Return ``(B, L, D)`` as ``(B, heads, L, D / heads)``."""
    if vectors.ndim != 3 or vectors.shape[-1] % heads:
        raise ValueError(
            f"{name} must be (samples, positions, width) with a width that relation_heads={heads} "
            f"divides, got {tuple(vectors.shape)}. Choose another relation_heads."
        )
    return vectors.unflatten(-1, (heads, -1)).transpose(1, 2)


class MiniLMRelation(FeatureLoss):
    """MiniLMv2's relations: for unlike widths and numbers of heads, without a projector.

    Vectors of all heads lie side by side and are split anew into ``relation_heads`` pieces of width
    d; a relation is ``softmax(x x^T / sqrt(d))`` between positions, and the value
    ``KL(teacher || student)``, in nats, a mean over relation heads and over the queries that count.
    Of queries, keys and values together it is the sum of three. A map of all of a head's vectors
    that keeps lengths and angles changes nothing.

    Above 2^25 entries the relations are made a few samples at a time, and again in backward.

    Args:
        relation_heads: How many pieces; they must divide both widths. The paper uses 48 for base
            models and 64 for large ones.

    Shape:
        - student: ``(B, L, D_s)``, or a sequence of such, as (queries, keys, values).
        - teacher: ``(B, L, D_t)``, likewise.
        - mask: ``(B, L)``, of keys and queries alike.
        - output: a scalar.

    Raises:
        ValueError: If ``relation_heads`` does not divide a width, or positions differ.

    Reference:
        Wang et al., MiniLMv2, arXiv 2012.15828; values alone: MiniLM, arXiv 2002.10957.

    Example:
        >>> import torch
        >>> student, teacher = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [-1.0]]])
        >>> teacher *= (torch.tensor(3.0).log() / 2).sqrt()  # probabilities 3/4 and 1/4
        >>> MiniLMRelation(relation_heads=1)(student, teacher)
        tensor(0.1308)
    """

    function = staticmethod(minilm_relation)

    def __init__(self, relation_heads: int = 48) -> None:
        super().__init__()
        if not isinstance(relation_heads, int) or isinstance(relation_heads, bool):
            raise TypeError(
                f"relation_heads must be an integer, got {relation_heads!r}. The paper uses 48."
            )
        if relation_heads < 1:
            raise ValueError(
                f"relation_heads must be at least 1, got {relation_heads}. The paper uses 48."
            )
        self.relation_heads = relation_heads
