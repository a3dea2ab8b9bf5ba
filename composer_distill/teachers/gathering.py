"""A module's weight, whole for a while, where FSDP cuts it over the ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel


def unwrapped(module: nn.Module | None) -> nn.Module | None:
    """Return a module without the FSDP1 around it; FSDP2 puts nothing around a module."""
    while isinstance(module, FullyShardedDataParallel):
        module = module.module
    return module


def is_freed(tensor: Tensor) -> bool:
    """Return whether FSDP has freed the memory of a tensor that it had gathered.

    Both FSDPs keep the tensor that a forward has seen, and with it the way of its gradient to the
    shards; its memory alone comes and goes.
    """
    return tensor.numel() > 0 and tensor.untyped_storage().size() == 0


@contextmanager
def gathered(model: nn.Module, module: nn.Module) -> Iterator[None]:
    """Have a module's own parameters whole inside, gathered with the unit of FSDP that holds them.

    Every rank must enter at the same time. Units inside of that one stay as they are.

    Args:
        model: The model that FSDP cuts.
        module: One of its modules.

    Example:
        >>> head = nn.Linear(2, 3)
        >>> with gathered(nn.Sequential(head), head):  # uncut: nothing is to be done
        ...     head.weight.shape
        torch.Size([3, 2])
    """
    unit = _unit_of(model, module)
    if isinstance(unit, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(unit, recurse=False, writeback=False):
            yield
    elif isinstance(unit, FSDPModule):
        unit.unshard()
        try:
            yield
        finally:
            unit.reshard()
    else:
        yield


def _unit_of(model: nn.Module, module: nn.Module) -> nn.Module | None:
    """Return the innermost unit of FSDP around a module, or None."""
    kinds = (FullyShardedDataParallel, FSDPModule)
    units = (unit for unit in model.modules() if isinstance(unit, kinds))
    around = [unit for unit in units if any(inner is module for inner in unit.modules())]
    return around[-1] if around else None  # modules() gives the outer ones first


def routed(weight: Tensor, values: Tensor) -> Tensor:
    """Return ``values``, whose gradient goes where that of ``weight`` does.

    Args:
        weight: What a forward has seen; its memory may have been freed.
        values: The same numbers, perhaps in another type.
    """
    return _Routed.apply(weight, values.detach())  # pyright: ignore[reportReturnType]


class _Routed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor) -> Tensor:
        ctx.dtype = weight.dtype
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0].to(ctx.dtype), None
