"""Tensors as bytes, compressed where that is worth it."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from composer_distill.caching.extra import need
from composer_distill.caching.frames import decompress

_SMALL = 512  # bytes, below which compression gains nothing
_LEVEL = 3
_LARGEST = 1 << 62

Columns = Mapping[str, bytes]
"""What is kept of one sample, by the names of MDS columns."""


def pack(tensor: Tensor) -> bytes:
    """Return a tensor's values.

    Example:
        >>> unpack(pack(torch.tensor([1.0, 2.0])), torch.float32, (2,))
        tensor([1., 2.])
    """
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    raw = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return raw if len(raw) < _SMALL else need("zstd").compress(raw, _LEVEL, 1)


def unpack(data: bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Return the tensor whose values these are.

    Raises:
        ValueError: If they are not as many as its shape says, or it is none.
    """
    size = math.prod(shape) * dtype.itemsize
    if any(length < 0 for length in shape) or size >= _LARGEST:
        raise ValueError(f"{list(shape)[:8]} is no shape of an answer")
    raw = data if size < _SMALL else decompress(data, size)
    if len(raw) != size:
        raise ValueError(f"{len(raw)} bytes are there where {size} are needed")
    if not size:
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(tuple(shape))


def pack_whole(answer: Tensor) -> dict[str, bytes]:
    """Return the columns of a sample's whole logits."""
    shape = torch.tensor(answer.shape, dtype=torch.int64)
    return {"shape": pack(shape), "values": pack(answer)}


def unpack_whole(columns: Columns, dtype: torch.dtype) -> Tensor:
    """Return a sample's whole logits."""
    shape = torch.frombuffer(bytearray(columns["shape"]), dtype=torch.int64).tolist()
    return unpack(columns["values"], dtype, shape)
