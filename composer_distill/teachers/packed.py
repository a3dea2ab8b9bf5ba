"""Texts packed into one row: whether a student reads over their borders, which its teacher follows.

Without an ``attention_mask``, transformers keeps texts apart where ``position_ids`` begin anew, but
only in a forward that makes no cache of keys and values. Models make one unless told otherwise.
"""

from collections.abc import Mapping, Sequence
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
    inputs = _inputs_of(batch)
    if inputs.get("position_ids") is None or inputs.get("attention_mask") is not None:
        return False
    configs = (getattr(module, "config", None) for module in student.modules())
    config = next((each for each in configs if hasattr(each, "use_cache")), None)
    caches = inputs.get("use_cache", getattr(config, "use_cache", False))
    return bool(caches) and not (student.training and _recomputes(student))


def holds_packed(batch: Any) -> bool:
    """Return whether any row of a batch's ``position_ids`` begins anew; it waits for the device."""
    positions = _inputs_of(batch).get("position_ids")
    return isinstance(positions, Tensor) and bool((positions.diff(dim=-1) < 0).any())


def _inputs_of(batch: Any) -> Mapping[str, Any]:
    """Return the names of a batch, or of its first element, as :func:`call_model` reads it."""
    inputs = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    return inputs if isinstance(inputs, Mapping) else {}


def _recomputes(student: nn.Module) -> bool:
    """Return whether activations are recomputed, for which transformers makes no cache."""
    return any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
