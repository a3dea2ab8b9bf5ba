"""Several teachers' logits to one target, one teacher at a time."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor


def mean_logits(answers: Iterable[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted mean of logits.

    It is the target whose gradient equals the mean of the per-teacher reverse KLs or of their
    logit MSEs. A teacher with larger logits counts for more.

    Args:
        answers: ``(share, logits)`` of each teacher; shares sum to 1. An iterator is read lazily,
            so that no more than one answer and the running mean are held.

    Shape:
        Each logits tensor and the result: the same, any shape.

    Example:
        >>> mean_logits([(0.25, torch.tensor([0.0, 4.0])), (0.75, torch.tensor([4.0, 0.0]))])
        tensor([3., 1.])
    """
    total: Tensor | None = None
    for share, logits in answers:
        if total is None and share == 1.0:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        total = logits * share if total is None else total.add_(logits, alpha=share)
    return _present(total)


def mean_probabilities(
    answers: Iterable[tuple[float, Tensor]], temperature: float, dim: int = -1
) -> Tensor:
    """Return logits whose softmax at ``temperature`` is the weighted mean of the teachers' own.

    The forward KL to it has exactly the gradient of the mean of the per-teacher forward KLs at the
    same temperature, at one evaluation of the loss.

    Args:
        answers: ``(share, logits)`` of each teacher; shares sum to 1. Read lazily.
        temperature: The loss's temperature.
        dim: The axis of the softmax.

    Shape:
        Each logits tensor and the result: the same, any shape.

    Example:
        >>> pair = [(0.5, torch.tensor([0.0, 0.0])), (0.5, torch.tensor([100.0, 0.0]))]
        >>> mean_probabilities(pair, temperature=1.0).softmax(-1)
        tensor([0.7500, 0.2500])
    """
    total: Tensor | None = None
    for share, logits in answers:
        if total is None and share == 1.0:
            return logits
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weighted = (logits / temperature).log_softmax(dim).add_(math.log(share))
        total = weighted if total is None else torch.logaddexp(total, weighted)
    return _present(total) * temperature


def by_rows(
    answers: Iterable[tuple[Tensor, Tensor, Tensor]],
    like: Tensor,
    temperature: float | None = None,
    dim: int = -1,
) -> Tensor:
    """Return the weighted mean of logits, or of probabilities, that know some rows each.

    Args:
        answers: ``(rows, shares, logits)`` of each teacher: which entries of the first axis it
            answers, with what share of each, and its logits there. Read lazily.
        like: A tensor of the result's shape.
        temperature: That of the probabilities; None for the mean of the logits.
        dim: The axis of the softmax.

    Shape:
        - rows, shares: ``(n,)``.
        - logits: ``(n, ...)``.
        - like, result: ``(N, ...)``; rows that nobody answers are 0.

    Example:
        >>> parts = [
        ...     (torch.tensor([0, 1]), torch.tensor([1.0, 0.5]), torch.tensor([[2.0], [2.0]])),
        ...     (torch.tensor([1]), torch.tensor([0.5]), torch.tensor([[4.0]])),
        ... ]
        >>> by_rows(parts, torch.empty(3, 1)).flatten()
        tensor([2., 3., 0.])
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    total = torch.zeros_like(like, dtype=dtype, requires_grad=False)
    answered = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    for rows, shares, logits in answers:
        share = shares.to(dtype).reshape(-1, *[1] * (logits.ndim - 1))
        if temperature is None:
            total.index_add_(0, rows, logits.to(dtype) * share)
            continue
        weighted = (logits.to(dtype) / temperature).log_softmax(dim) + share.log()
        earlier = answered[rows].reshape(share.shape)
        total[rows] = torch.where(earlier, torch.logaddexp(total[rows], weighted), weighted)
        answered[rows] = True
    return total if temperature is None else total * temperature


def _present(total: Tensor | None) -> Tensor:
    if total is None:
        raise ValueError("answers must hold at least one teacher's logits, got none.")
    return total
