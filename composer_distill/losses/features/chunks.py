"""A sum over many pieces, of which one is in memory at a time."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ENTRIES = 1 << 25
"""How many entries of the largest intermediate tensor are held at once: 128 MiB of float32."""


def sum_in_chunks(part: Callable[..., Tensor], sliced: tuple[Tensor, ...], entries: int) -> Tensor:
    """Return the sum of ``part`` over slices along the first axis.

    Where more than one slice is needed each is computed again in backward instead of being kept.

    Args:
        part: From slices of the tensors to a scalar.
        sliced: Tensors of one length along their first axis.
        entries: How many entries the largest intermediate tensor has for one element of that axis.
    """
    size = max(1, ENTRIES // max(entries, 1))
    if len(sliced[0]) <= size:
        return part(*sliced)
    pieces = zip(*(tensor.split(size) for tensor in sliced), strict=True)
    values = [
        checkpoint(part, *piece, use_reentrant=False, preserve_rng_state=False) for piece in pieces
    ]
    return torch.stack(values).sum()  # pyright: ignore[reportArgumentType]
