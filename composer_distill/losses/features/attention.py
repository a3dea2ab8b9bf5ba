"""Distributions over keys: what the losses of attention maps and of relations share."""

from typing import Any

import torch
from torch import Tensor

from composer_distill.losses.features.inputs import check_mask


def key_and_query(mask: Any, maps: Tensor) -> Tensor | None:
    """Return which pairs of query and key count, None where all do.

    Args:
        mask: True where a position counts, None where all do.
        maps: What the pairs are of.

    Shape:
        - mask: ``(B, L)``; maps: ``(B, A, L, L)``; result: ``(B, 1, L, L)``.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If the shapes do not fit.
    """
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3]:
        raise ValueError(
            "attention must have the shape (samples, heads, positions, positions), got "
            f"{tuple(maps.shape)}. Take the maps of self-attention, one for each head."
        )
    if mask is None:
        return None
    check_mask(mask)
    if mask.shape != (maps.shape[0], maps.shape[2]):
        raise ValueError(
            f"mask must have one value a position, {(maps.shape[0], maps.shape[2])} for attention "
            f"of shape {tuple(maps.shape)}, got {tuple(mask.shape)}. Use the attention mask."
        )
    return mask[:, None, :, None] & mask[:, None, None, :]


def sum_of_divergences(student: Tensor, teacher: Tensor, pairs: Tensor | None) -> Tensor:
    """Return the sum over samples, heads and queries of KL(teacher || student) over keys.

    Args:
        student: The student's log-probabilities, or anything that a softmax over keys turns into
            its distribution.
        teacher: The teacher's, likewise.
        pairs: Which pairs of query and key count, None for all.

    Shape:
        - student, teacher: ``(B, A, L, L)``; pairs: ``(B, 1, L, L)``.
    """
    low = torch.finfo(student.dtype).min / 4  # finite, so that a row without keys is no NaN
    if pairs is not None:
        student, teacher = (torch.where(pairs, x, low) for x in (student, teacher))
    log_q = student.clamp(min=low).log_softmax(-1)
    log_p = teacher.clamp(min=low).log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q)
    return (terms if pairs is None else torch.where(pairs, terms, 0.0)).sum()


def number_of_rows(mask: Tensor | None, maps: Tensor) -> Tensor | int:
    """Return how many pairs of a head and a query count, at least 1."""
    samples, heads, positions = maps.shape[:3]
    if mask is None:
        return max(samples * heads * positions, 1)
    return (mask.sum() * heads).clamp(min=1)
