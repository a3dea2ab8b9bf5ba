"""A microbatch narrowed to some of the positions that count, so that the others add 0."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.teachers.microbatch import Microbatch


def narrowed(
    microbatch: Microbatch, target: Tensor, good: Tensor
) -> tuple[Microbatch, Tensor, Tensor]:
    """Return the microbatch and its target at some positions, and the share of those.

    The mean over them times that share is the mean over all positions where the others add 0.

    Args:
        microbatch: What the student saw and answered.
        target: The teachers' target, in the shape of ``microbatch.compared``.
        good: True at the positions that stay.

    Shape:
        - target: ``(K, C)``, or that of the student's logits.
        - good: that of the target without its class axis.
    """
    compared = microbatch.compared
    if microbatch.selects and microbatch.mask is not None:
        whole = torch.zeros_like(microbatch.mask)
        whole[microbatch.mask] = good
    else:
        whole = good if compared.mask is None else good & compared.mask
    fewer = replace(microbatch, mask=whole, early=False)
    share = whole.sum() / (good.numel() if compared.mask is None else compared.mask.sum())
    if not microbatch.selects:
        return fewer, target, share
    if fewer.empty:
        return fewer, fewer.kept.logits, share
    flat = good.reshape(-1).nonzero().squeeze(1)
    moved = target.movedim(compared.axis, -1).reshape(-1, target.shape[compared.axis])
    return fewer, moved.index_select(0, flat), share


def check_is_mean(kd_loss_fn: Any, what: str) -> None:
    """Refuse a loss that is no mean over positions where some of them shall add 0.

    Raises:
        ValueError: If it is a sum, or a sum by the number of samples.
    """
    parts = kd_loss_fn.modules() if isinstance(kd_loss_fn, DistillationLoss) else ()
    for part in parts:
        reduction = getattr(part, "reduction", "mean")
        if reduction in ("sum", "batchmean"):
            raise ValueError(
                f"{what} leaves positions out of a mean, but {type(part).__name__} has "
                f"reduction={reduction!r}. Use reduction='mean'."
            )
