"""Texts packed into one row: whether a student reads over their borders, which its teacher follows.

Without an ``attention_mask``, transformers keeps texts apart where ``position_ids`` begin anew, but
only in a forward that makes no cache of keys and values. Models make one unless told otherwise.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def reads_over_borders(student: nn.Module, batch: Any) -> bool:
    """Return whether a batch may hold packed texts that the student does not keep apart.

    Args:
        student: The student, in the mode in which it answered.
        batch: What it answered.

    Example:
        >>> reads_over_borders(nn.Linear(2, 2), {"position_ids": None})
        False
    """
    if not isinstance(batch, Mapping) or batch.get("position_ids") is None:
        return False
    if batch.get("attention_mask") is not None:
        return False
    configs = [m.config for m in student.modules() if hasattr(m, "config")]
    config = next((c for c in configs if hasattr(c, "use_cache")), None)
    caches = batch.get("use_cache", getattr(config, "use_cache", False))
    return bool(caches) and not (student.training and _recomputes(student))


def holds_packed(batch: Mapping[str, Any]) -> bool:
    """Return whether any row of a batch's ``position_ids`` begins anew; it waits for the device."""
    positions = batch["position_ids"]
    return isinstance(positions, Tensor) and bool((positions.diff(dim=-1) < 0).any())


def _recomputes(student: nn.Module) -> bool:
    """Return whether activations are recomputed, for which transformers makes no cache."""
    return any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
