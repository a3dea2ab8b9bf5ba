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


def move(model: nn.Module, device: torch.device, dtype: torch.dtype | None, label: str) -> None:
    """Move a model, and cast it where a type is given; one that is there already is left alone.

    Quantised models often refuse one or both, and some even a call that names no type.

    Args:
        model: The model.
        device: Where to move it.
        dtype: The type of its floating-point weights, or None to keep their types.
        label: What errors call it.

    Raises:
        ValueError: If the model refuses, or holds complex numbers, which a real type would cut.
    """
    if dtype is not None and not dtype.is_complex and any(map(torch.is_complex, _tensors(model))):
        raise ValueError(
            f"{label}: it holds complex tensors, of which {dtype} would keep the real part alone. "
            "Please leave Teacher(..., dtype=...) out."
        )
    there = all(tensor.device == device for tensor in _tensors(model))
    if there and dtype is None:
        return
    try:
        model.to(device) if dtype is None else model.to(device, dtype)
    except (ValueError, NotImplementedError) as error:
        remedy = (
            f"load it there, for models of transformers by device_map={{'': {str(device)!r}}}"
            if dtype is None
            else "leave Teacher(..., dtype=...) out, quantised weights have a type of their own"
        )
        raise ValueError(
            f"{label}: a {type(model).__name__} could not be brought to {device}"
            f"{'' if dtype is None else f' as {dtype}'} ({error}). Please {remedy}."
        ) from error


def pin(model: nn.Module) -> None:
    """Lock a model's host memory, so that copies to a GPU need not wait for it."""
    for tensor in _tensors(model):
        tensor.data = tensor.data.pin_memory()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
