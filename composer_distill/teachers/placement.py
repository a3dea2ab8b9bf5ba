"""Where a teacher's weights are while they are needed, and while they are not."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Bring a frozen model's weights to a device, and put those that were there back.

    Nothing is copied back: a frozen model's weights have not changed.

    Args:
        model: The model, with its weights in host memory.
        device: Where to bring them.
    """
    held = _tensors(model)
    home = [tensor.data for tensor in held]
    try:
        for tensor, data in zip(held, home, strict=True):
            tensor.data = data.to(device, non_blocking=True)
        yield
    finally:
        for tensor, data in zip(held, home, strict=True):
            tensor.data = data


def pin(model: nn.Module) -> None:
    """Lock a model's host memory, so that copies to a GPU need not wait for it."""
    for tensor in _tensors(model):
        tensor.data = tensor.data.pin_memory()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
