"""What the fused loss refuses, in words."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

from composer_distill.losses.checks import check_reduction


def check_fused_reduction(reduction: str) -> None:
    """Refuse a reduction that the fused loss has not."""
    if check_reduction(reduction) == "none":
        raise ValueError(
            "reduction must be 'mean', 'batchmean' or 'sum' for the fused loss, got 'none': "
            "its terms never exist at one time. Use KLDivergence on the logits."
        )


def check_head(name: str, hidden: Any, weight: Any, bias: Any) -> None:
    """Refuse what is no head."""
    for part, value in (("hidden", hidden), ("weight", weight)):
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{name}_{part} must be a floating-point tensor, got {kind}. "
                "Pass the last hidden states and the head's weight."
            )
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}_hidden (..., H) and {name}_weight (V, H) must share H, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}. Pass the weight as torch.nn.Linear "
            "has it."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}_bias must have the shape {tuple(weight.shape[:1])}, got "
            f"{tuple(bias.shape)}. Pass the head's own bias, or None."
        )


def check_pair(s_hidden: Tensor, s_weight: Tensor, t_hidden: Tensor, t_weight: Tensor) -> None:
    """Refuse heads that can't be compared."""
    if s_hidden.shape[:-1] != t_hidden.shape[:-1]:
        raise ValueError(
            f"student and teacher hidden states must have the same positions, got "
            f"{tuple(s_hidden.shape)} and {tuple(t_hidden.shape)}. Align the tokens first."
        )
    if s_weight.shape[0] != t_weight.shape[0]:
        raise ValueError(
            f"student and teacher weights must have the same classes, got {s_weight.shape[0]} and "
            f"{t_weight.shape[0]}. Cut both to their common vocabulary."
        )
    if s_weight.shape[0] < 2:
        raise ValueError(
            f"student and teacher weights must have 2 classes or more, got {s_weight.shape[0]}, "
            "over which a softmax is always 1. Use BernoulliKL on the logits."
        )


def check_cap(name: str, cap: Any) -> None:
    """Refuse a cap that is no positive number."""
    number = isinstance(cap, Real) and not isinstance(cap, bool)
    if cap is None or (number and 0.0 < float(cap) < math.inf):
        return
    raise ValueError(
        f"{name}_cap must be a positive number or None, got {cap!r}. Pass the model's own, such "
        "as config.final_logit_softcapping."
    )
