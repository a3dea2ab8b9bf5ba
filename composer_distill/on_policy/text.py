"""Prompts out of a batch, and a batch out of prompts and continuations: tensors alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

IGNORED_LABEL = -100
"""The label that Hugging Face's and torch's losses leave out."""


def before_labels(labels: Tensor, attended: Tensor) -> Tensor:
    """Return which positions are the prompt: those before a row's first label that is not -100.

    The first attended position is one always: nothing predicts it.

    Args:
        labels: One class a position, where it stands.
        attended: Which positions are text and not padding.

    Shape:
        - labels, attended, result: ``(B, T)``; the last two are boolean.

    Example:
        >>> labels, attended = torch.tensor([[-100, -100, 7, 8]]), torch.ones(1, 4).bool()
        >>> before_labels(labels, attended)
        tensor([[ True,  True, False, False]])
        >>> before_labels(torch.tensor([[5, 6, 7, 8]]), attended)
        tensor([[ True, False, False, False]])
    """
    before = (labels != IGNORED_LABEL).cumsum(-1) == 0
    first = attended & (attended.cumsum(-1) == 1)
    return (before & attended) | first


def left_padded(rows: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Return rows of unlike length as one tensor that ends with their last tokens.

    Args:
        rows: Token ids, one tensor each.
        pad: What stands before them.

    Returns:
        The ids, and a mask that is 1 at tokens.

    Shape:
        - rows: ``(n,)`` each.
        - results: ``(B, longest)``.

    Example:
        >>> left_padded([torch.tensor([4, 5]), torch.tensor([6])], pad=0)
        (tensor([[4, 5],
                [0, 6]]), tensor([[1, 1],
                [0, 1]]))
    """
    ids = pad_sequence(list(rows), batch_first=True, padding_value=pad, padding_side="left")
    masks = [torch.ones_like(row) for row in rows]
    return ids, pad_sequence(masks, batch_first=True, padding_side="left")


def lengths(continuations: Tensor, ends: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return how many tokens of each continuation count, the first end of sequence among them.

    Args:
        continuations: Token ids.
        ends: The ids that end a sequence; none where nothing does.

    Returns:
        The numbers, and which continuations ended.

    Shape:
        - continuations: ``(B, n)``.
        - results: ``(B,)``, integers and booleans.

    Example:
        >>> lengths(torch.tensor([[5, 2, 2], [2, 0, 0], [5, 6, 7]]), ends=[2])
        (tensor([2, 1, 3]), tensor([ True,  True, False]))
    """
    ended = torch.isin(continuations, continuations.new_tensor(list(ends)))
    before = ((ended.cumsum(-1) == 0) & ~ended).sum(-1)
    has_ended = ended.any(-1)
    return before + has_ended, has_ended


def joined(
    prompts: Sequence[Tensor], continuations: Tensor, counted: Tensor, pad: int
) -> dict[str, Tensor]:
    """Return a batch of prompts and their continuations, padded behind.

    Args:
        prompts: Token ids, one tensor each.
        continuations: Token ids.
        counted: How many of each count; what stands behind is dropped.
        pad: What pads the ids.

    Shape:
        - prompts: ``(n,)`` each.
        - continuations: ``(B, m)``.
        - counted: ``(B,)``.
        - result: ``(B, longest)`` each.

    Example:
        >>> made = joined([torch.tensor([4, 5])], torch.tensor([[6, 2, 0]]), torch.tensor([2]), 0)
        >>> made["input_ids"], made["labels"]
        (tensor([[4, 5, 6, 2]]), tensor([[-100, -100,    6,    2]]))
    """
    written = [row[:count] for row, count in zip(continuations, counted.tolist(), strict=True)]
    pairs = list(zip(prompts, written, strict=True))
    ids = [torch.cat(pair) for pair in pairs]
    labels = [torch.cat([torch.full_like(a, IGNORED_LABEL), b]) for a, b in pairs]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED_LABEL),
    }


def as_labels(continuations: Tensor, counted: Tensor) -> Tensor:
    """Return continuations as the labels of a decoder: -100 behind what counts.

    Args:
        continuations: Token ids.
        counted: How many of each count.

    Shape:
        - continuations: ``(B, n)``.
        - counted: ``(B,)``.
        - result: ``(B, max(counted))``.

    Example:
        >>> as_labels(torch.tensor([[6, 2, 0], [2, 0, 0]]), torch.tensor([2, 1]))
        tensor([[   6,    2],
                [   2, -100]])
    """
    width = int(counted.max())
    behind = torch.arange(width, device=counted.device) >= counted[:, None]
    return continuations[:, :width].masked_fill(behind, IGNORED_LABEL)
