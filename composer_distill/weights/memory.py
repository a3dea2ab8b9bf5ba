"""Memory, spared: room for a model on the meta device, and pages of a file given back."""

import ctypes
import mmap
import sys

import torch
from torch import Tensor, nn


def materialize(model: nn.Module) -> None:
    """Give a model that was built on the meta device room in host memory, values undefined.

    Parameters and buffers that several modules share stay shared. The room takes no physical
    memory before it is written.

    Args:
        model: The model, changed in place. What is not on the meta device stays as it is.
    """
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                module._parameters[name] = _room(parameter, made)  # pyright: ignore[reportArgumentType]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = _room(buffer, made)


def _room(meta: Tensor, made: dict[int, Tensor]) -> Tensor:
    if id(meta) not in made:
        room = torch.empty_like(meta, device="cpu")
        if isinstance(meta, nn.Parameter):
            room = nn.Parameter(room, requires_grad=meta.requires_grad)
        made[id(meta)] = room
    return made[id(meta)]


def copy_out(model: nn.Module) -> None:
    """Give a model's weights memory of their own, where they may be views of a mapped file.

    transformers leaves them such views on a CPU: they change with the file, and a file that is cut
    ends the process. One weight at a time is held twice.

    Args:
        model: The model, changed in place; what modules share stays shared.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.layout is torch.strided:
            tensor.data = tensor.data.clone()


def release(view: Tensor) -> None:
    """Let the pages under a view of a memory-mapped file go; they are read again when needed.

    Only for views of a file: ordinary memory would lose its values. Does nothing where the
    operating system has no such call, and copies then cost twice the memory.

    Args:
        view: A contiguous view of a memory-mapped file.
    """
    if not sys.platform.startswith("linux") or not view.is_contiguous():
        return
    start = -(-view.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (view.data_ptr() + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)
