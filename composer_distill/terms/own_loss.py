"""What a student's own loss says of its logits: do they predict their own label, or the next?

A model that computes a cross-entropy from ``labels`` has decided it, whatever its class is called.
So both cross-entropies are compared with the loss that it gave.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from composer_distill.terms.task import IGNORED_LABEL, next_labels

_CHUNK_ELEMENTS = 1 << 22  # 16 MiB at float32
_MUCH = 8.0  # how many times nearer the better of the two must be
_ROUNDING = 3e-6  # of a sum at float32: two losses that are nearer than this are equal
_SEEN, _UNSEEN = 0.9, 0.5  # share of labels that the gradient points at


def own_loss(loss: Any, outputs: Any) -> Tensor | None:
    """Return the loss that the student computed itself: in its output, or from the Trainer.

    Args:
        loss: The Trainer's loss.
        outputs: The student's whole output.

    Returns:
        The loss with its graph, or None where it is none of one value.
    """
    found = outputs.get("loss") if isinstance(outputs, Mapping) else getattr(outputs, "loss", None)
    found = found if isinstance(found, Tensor) else loss
    return found if isinstance(found, Tensor) and found.numel() == 1 else None


def predicts_next(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Return whether logits predict the next label, by the loss that was made of them.

    First both cross-entropies are compared with the value of the loss, as mean and as sum over the
    labels. Where neither is the loss, as with label smoothing, class weights or a router's loss
    beside it, its gradient tells: each position's points most steeply at the label that it learns.

    Args:
        loss: The model's own loss, of one value.
        logits: The logits that it was computed from.
        labels: One class a position, -100 for none.

    Shape:
        - logits: ``(B, T, C)``.
        - labels: ``(B, T)``.

    Returns:
        True for the next label, False for their own, None where neither is certain.

    Example:
        >>> logits, labels = torch.randn(2, 8, 9), torch.randint(0, 9, (2, 8))
        >>> rows, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        >>> predicts_next(torch.nn.functional.cross_entropy(rows, targets), logits, labels)
        True
    """
    labels = labels.to(logits.device)
    known = (labels >= 0) & (labels < logits.shape[-1])
    labels = labels.masked_fill(~known, IGNORED_LABEL)
    by_value = _by_value(loss, logits, labels)
    return _by_gradient(loss, logits, labels) if by_value is None else by_value


@torch.no_grad()
def _by_value(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Compare the loss with both cross-entropies, in float32 and a few rows at a time."""
    rows, places = logits.detach().flatten(0, 1), (labels, next_labels(labels))
    targets = [place.flatten() for place in places]
    chunks: list[Tensor] = []
    for start in range(0, len(rows), size := max(1, _CHUNK_ELEMENTS // logits.shape[-1])):
        log_probs = rows[start : start + size].float().log_softmax(-1)
        sums = [
            torch.nn.functional.nll_loss(
                log_probs, target[start : start + size], ignore_index=IGNORED_LABEL, reduction="sum"
            )
            for target in targets
        ]
        chunks.append(torch.stack(sums))
    counts = [int((target != IGNORED_LABEL).sum()) for target in targets]
    totals = [math.fsum(sums) for sums in torch.stack(chunks).T.tolist()]
    value = float(loss)
    own_gap, next_gap = (
        min(abs(total - value), abs(total / max(count, 1) - value)) / max(abs(value), 1.0)
        for total, count in zip(totals, counts, strict=True)
    )
    near = max(1e-4, 4.0 * torch.finfo(loss.dtype).eps)
    if own_gap < near and max(own_gap * _MUCH, _ROUNDING) < next_gap:
        return False
    if next_gap < near and max(next_gap * _MUCH, _ROUNDING) < own_gap:
        return True
    return None


def _by_gradient(loss: Tensor, logits: Tensor, labels: Tensor) -> bool | None:
    """Look at which class the loss's gradient wants to raise most at each position."""
    hooked = any(getattr(tensor, "_backward_hooks", None) for tensor in (loss, logits))
    if hooked or not (loss.requires_grad and logits.requires_grad):  # FSDP's hooks expect backward
        return None
    (gradient,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True, allow_unused=True)
    if gradient is None:  # such as of a compiled model, whose outputs are made all at once
        return None
    raised = gradient.argmin(-1)
    own, following = (
        float((raised == place)[place != IGNORED_LABEL].float().mean())
        for place in (labels, next_labels(labels))
    )
    if own > _SEEN and following < _UNSEEN:
        return False
    return True if following > _SEEN and own < _UNSEEN else None
