"""Which positions of features count: padding never does."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composer_distill.terms.positions import MaskFn, attended_positions


def mask_for(
    mask_fn: MaskFn | None, view: Any, outputs: Any, features: Any, name: str
) -> Tensor | None:
    """Return which positions of features count, None where all do.

    Args:
        mask_fn: The user's choice; None for the attended positions, where they fit.
        view: The batch as the student saw it.
        outputs: The student's output.
        features: The student's features, or several of the same positions.
        name: The student's layer.

    Shape:
        - features: ``(B, L, D)``, ``(B, A, L, L)`` or any other.
        - result: ``(B, L)``, or what ``mask_fn`` returns.

    Raises:
        TypeError: If ``mask_fn`` returns no boolean tensor.
    """
    first = features if isinstance(features, Tensor) else features[0]
    if mask_fn is not None:
        mask = mask_fn(view, outputs)
        if mask is not None and not isinstance(mask, Tensor):
            raise TypeError(
                f"mask_fn must return a boolean tensor or None, got {type(mask).__name__}. "
                "Compare before you return, such as batch['labels'] != -100."
            )
        return None if mask is None else mask.to(first.device).bool()
    if isinstance(view, Mapping) and "encoder" in name and "decoder" not in name:
        view = {"attention_mask": view.get("attention_mask")}
    mask = attended_positions(view)
    return mask.to(first.device) if mask is not None and _fits(mask, first) else None


def _fits(mask: Tensor, features: Tensor) -> bool:
    """Return whether a mask over tokens is one over the positions of features."""
    samples, tokens = mask.shape
    shape = features.shape
    if features.ndim == 3:
        return shape[:2] == mask.shape
    return features.ndim == 4 and shape[0] == samples and shape[2] == shape[3] == tokens


def kept_rows(features: Sequence[Tensor], mask: Tensor | None, name: str) -> list[Tensor]:
    """Return features for a loss that knows no mask: the kept positions as rows.

    Args:
        features: Features of the same positions.
        mask: Which count, None for all.
        name: The term's name, for errors.

    Shape:
        - features: ``(*P, ...)``; mask: ``(*P)``; result: ``(K, ...)``.

    Raises:
        ValueError: If the mask is not over the first axes, as for attention maps.
    """
    if mask is None:
        return list(features)
    for tensor in features:
        if tensor.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"feature term {name!r}: its loss knows no mask, and one of shape "
                f"{tuple(mask.shape)} can't select rows of features of shape "
                f"{tuple(tensor.shape)}. Use a loss of composer_distill.losses, or "
                "mask_fn=all_positions."
            )
    return [tensor[mask] for tensor in features]


def telling(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return a small tensor that is finite if and only if the kept features are.

    Shape:
        - features: ``(*P, ...)`` or ``(B, A, L, L)``; mask: ``(*P)`` or ``(B, L)``.
        - result: ``(*P)`` or ``(B, L)``.
    """
    if mask is None:
        return features
    if features.shape[: mask.ndim] != mask.shape:
        features = features.transpose(1, 2)
    axes = tuple(range(mask.ndim, features.ndim))
    wide = torch.promote_types(features.dtype, torch.float32)
    sums = features.sum(axes, dtype=wide) if axes else features
    return sums.masked_fill(~mask, 0.0)
