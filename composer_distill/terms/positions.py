"""Which positions distillation counts, and the labels that belong to them: pure functions.

A causal language model's logits at position ``i`` predict token ``i + 1``, so whatever comes from
its labels is shifted by one; a masked language model's logits predict the token where they stand.
Nothing here reads ``pad_token_id``: where padding equals the end-of-sequence token it would drop
real tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from composer_distill.notes import noted
from composer_distill.terms.task import IGNORED_LABEL, Task, next_labels

MaskFn = Callable[[Any, Any], Tensor | None]
"""``mask_fn(batch, outputs)``: True where a position counts, None where all do."""


def loss_positions(batch: Any, outputs: Any = None, *, shift: bool = True) -> Tensor:
    """Return the positions that carry the task's own loss: those whose label is not -100.

    As ``Distillation(mask_fn=loss_positions)`` it is called with the shift that the student's task
    needs. With left padding, the causal shift counts the padding position before a sequence, which
    predicts its first token, exactly as the task's loss does; give that token the label -100 to
    leave it out of both.

    Args:
        batch: A mapping with ``labels``, or a sequence whose second element they are.
        outputs: Not read.
        shift: Whether the logits predict the next label: True for causal LMs only.

    Shape:
        - labels: ``(B, T)``, or ``(B,)`` without shift.
        - result: the shape of the labels; with the shift the last position is never kept.

    Raises:
        ValueError: If the batch has no labels.

    Example:
        >>> import torch
        >>> batch = {"labels": torch.tensor([[-100, 5, 6, -100]])}
        >>> loss_positions(batch)
        tensor([[ True,  True, False, False]])
        >>> loss_positions(batch, shift=False)
        tensor([[False,  True,  True, False]])
    """
    labels = labels_of(batch)
    if labels is None:
        raise ValueError(
            f"mask_fn=loss_positions needs labels in the batch, got {_describe(batch)}. "
            "Use attended_positions or all_positions for batches without labels."
        )
    return align(labels, Task(shift)) != IGNORED_LABEL


def attended_positions(batch: Any, outputs: Any = None) -> Tensor | None:
    """Return the positions that attention reads: padding left out, on whichever side it stands.

    Args:
        batch: A mapping; its ``decoder_attention_mask`` comes before its ``attention_mask``.
        outputs: Not read.

    Shape:
        - attention_mask: ``(B, T)``, or ``(B, T, T)`` from reader to what is read.
        - result: ``(B, T)``.

    Returns:
        The mask, or None (all positions) where the batch has no attention mask over positions.

    Example:
        >>> import torch
        >>> attended_positions({"attention_mask": torch.tensor([[0, 1, 1]])})
        tensor([[False,  True,  True]])
    """
    if not isinstance(batch, Mapping):
        return None
    mask = batch.get("decoder_attention_mask")
    if mask is None:
        mask = batch.get("attention_mask")
    if isinstance(mask, Tensor) and mask.ndim == 3:  # who reads whom: padding is read by none
        return mask.bool().any(1)
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None


def all_positions(batch: Any, outputs: Any = None) -> None:
    """Return None: every position counts, padding too."""
    return None


def default_positions(batch: Any, logits: Tensor, task: Task) -> Tensor | None:
    """Return the positions that count where the user chose no ``mask_fn``.

    ========================================  ==============================================
    task                                      positions
    ========================================  ==============================================
    causal or vision-language, with decoder   those that carry the task's loss
    masked LM, classification per token       the attended ones
    speech by frames (CTC)                    the frames of attended samples
    one answer a sample, vision               all
    ========================================  ==============================================

    A causal LM whose batch has no labels counts the attended positions, an encoder-decoder those
    of its ``decoder_attention_mask``.

    Args:
        batch: The student's batch.
        logits: The student's logits.
        task: What the student's own loss or its architecture says.

    Shape:
        - logits: ``(B, T, C)`` for one answer a position, ``(B, C)`` for one a sample.
        - result: ``(B, T)``.
    """
    labels = labels_of(batch)
    if logits.ndim != 3:
        return None
    if task.counts_labels and labels is not None and labels.shape == logits.shape[:-1]:
        return align(labels, task) != IGNORED_LABEL
    if not isinstance(batch, Mapping):
        return None
    mask = _attended(batch, task)
    if mask is not None and mask.shape != logits.shape[:-1] and task.frames is not None:
        mask = task.frames(logits.shape[1], mask.long()).bool()
    return mask if mask is not None and mask.shape == logits.shape[:-1] else None


def unread_mask(batch: Any, logits: Tensor, task: Task) -> Tensor | None:
    """Return the batch's mask where :func:`default_positions` can make nothing of it.

    Args:
        batch: The student's batch.
        logits: The student's logits.
        task: What the student's own loss or its architecture says.

    Shape:
        - logits: ``(B, T, C)``, else nothing is expected of a mask.
        - result: ``(B, S)``, with S another number than T.

    Example:
        >>> import torch
        >>> sound = {"attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
        >>> unread_mask(sound, torch.zeros(1, 3, 9), Task())
        tensor([[ True,  True,  True,  True, False, False]])
    """
    if logits.ndim != 3 or default_positions(batch, logits, task) is not None:
        return None
    mask = _attended(batch, task)
    classes = None if mask is None else mask.shape == (len(logits), logits.shape[2])
    return None if classes else mask  # where a span is looked for, positions are the classes


def _attended(batch: Any, task: Task) -> Tensor | None:
    """Return the mask over what logits may belong to: an encoder's tells nothing of a decoder."""
    if task.encoder_decoder and isinstance(batch, Mapping):
        batch = {key: value for key, value in batch.items() if key != "attention_mask"}
    return attended_positions(batch)


def kept_positions(
    mask_fn: MaskFn | None, batch: Any, outputs: Any, logits: Tensor, task: Task, axis: int = -1
) -> Tensor | None:
    """Return the positions that count in a microbatch, checked.

    Args:
        mask_fn: The user's choice, or None for :func:`default_positions`.
        batch: The student's batch.
        outputs: The student's whole output.
        logits: The student's logits, taken out of it.
        task: What the student's architecture says.
        axis: The class axis of the logits.

    Shape:
        - logits: ``(..., C)``, or the class axis at ``axis``.
        - result: ``(...)``.

    Raises:
        TypeError: If ``mask_fn`` returns no boolean tensor.
        ValueError: If its shape is not that of the positions.
    """
    if mask_fn is None:
        mask = default_positions(batch, logits, task)
    elif mask_fn is loss_positions:
        mask = loss_positions(batch, outputs, shift=task.shift and not task.aligned)
    else:
        with noted("mask_fn", mask_fn):
            mask = mask_fn(batch, outputs)
    if mask is None:
        return None
    name = getattr(mask_fn, "__name__", None) or type(mask_fn).__name__
    if not isinstance(mask, Tensor) or mask.dtype.is_floating_point or mask.dtype.is_complex:
        came = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask_fn ({name}) must return a boolean tensor or None, got {came}. "
            "Compare before you return, such as batch['labels'] != -100."
        )
    needed = _without(logits.shape, axis)
    if mask.shape != needed:
        raise ValueError(
            f"mask_fn ({name}) must return one value a position, {tuple(needed)} for the "
            f"student's logits of shape {tuple(logits.shape)}, got {tuple(mask.shape)}. "
            "Use all_positions, or build the mask from what has the logits' shape."
        )
    return mask.to(device=logits.device).bool()


def aligned_labels(batch: Any, logits: Tensor, task: Task, axis: int = -1) -> Tensor | None:
    """Return the label that the logits predict at each position, -100 where there is none.

    Losses that need labels, and a teacher's own cross-entropy on them, must read these: with a
    causal LM's labels as they stand in the batch every one would be off by a position.

    Args:
        batch: A mapping with ``labels``, or a sequence whose second element they are.
        logits: The student's logits.
        task: What the student's architecture says.
        axis: The class axis of the logits.

    Shape:
        - logits: ``(..., C)``, or the class axis at ``axis``.
        - result: ``(...)``.

    Returns:
        The labels, or None where the batch has none that fit: no labels, mixed or smoothed ones,
        or another number of positions.

    Example:
        >>> import torch
        >>> batch = {"labels": torch.tensor([[4, 5, 6]])}
        >>> aligned_labels(batch, torch.zeros(1, 3, 9), Task(shift=True))
        tensor([[   5,    6, -100]])
    """
    labels = labels_of(batch)
    if labels is None or not has_class_labels(batch, logits, axis):
        return None
    return align(labels, task).to(logits.device)


def has_class_labels(batch: Any, logits: Tensor, axis: int = -1) -> bool:
    """Return whether a batch holds one class index for each position of the logits.

    Args:
        batch: A mapping with ``labels``, or a sequence whose second element they are.
        logits: The student's logits.
        axis: Their class axis.
    """
    labels = labels_of(batch)
    if labels is None or labels.is_floating_point() or labels.is_complex():
        return False
    return logits.ndim > 0 and labels.shape == _without(logits.shape, axis)


def align(labels: Tensor, task: Task) -> Tensor:
    """Return labels where the logits predict them: one position earlier under the causal shift.

    Args:
        labels: One class a position.
        task: Says whether to shift.

    Shape:
        - labels, result: ``(..., T)``.
    """
    if not task.shift or task.aligned:
        return labels
    return next_labels(labels)


def labels_of(batch: Any) -> Tensor | None:
    """Return the labels of a batch as they stand in it, None where it has none."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, Sequence) and len(batch) > 1:
        labels = batch[1]
    else:
        labels = None
    return labels if isinstance(labels, Tensor) else None


def _without(shape: Sequence[int], axis: int) -> tuple[int, ...]:
    """Return a shape without one of its axes."""
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"the keys {list(batch)}"
    return type(batch).__name__
