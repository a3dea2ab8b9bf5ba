"""In which type a loss is computed, and what may be seen of it meanwhile."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def can_be_read(tensor: Tensor) -> bool:
    """Tell whether the host sees a tensor's values without waiting for a device."""
    return tensor.is_cpu


def full_precision(like: Tensor) -> AbstractContextManager[Any]:
    """Turn autocast off where it is on: it would take our products of float32 in half precision."""
    kind = "cpu" if like.is_cpu else like.device.type
    if like.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the type to compute in: float32, or float64 where an input has it."""
    dtype = torch.float32
    for tensor in tensors:
        if tensor.dtype != dtype:
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
