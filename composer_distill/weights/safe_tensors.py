"""Files of the safetensors library."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from composer_distill.weights.contents import Spec

# 128 experts in each of 48 layers, merged into one file, are 18,867; all 163 files of a model of
# 671 billion weights are 91,991 together.
MAX_ENTRIES = 200_000
MAX_AXES = 64  # torch computes with no more
_MAX_HEADER = 100_000_000  # safetensors' own bound


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors files do: a length, and JSON of that length."""
    with path.open("rb") as stream:
        head = stream.read(9)
    length = int.from_bytes(head[:8], "little")
    return len(head) == 9 and head[8:] == b"{" and length <= _MAX_HEADER


@contextmanager
def open_safetensors(path: Path) -> Iterator[tuple[Callable[[str], Tensor], dict[str, Spec]]]:
    """Open a file, and give a function that maps one tensor of it, and all their specs.

    Args:
        path: The file.

    Raises:
        ImportError: If the safetensors library is not installed.
        ValueError: If the file is damaged.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f"{path} needs the safetensors library: pip install safetensors"
        ) from error
    _check_header(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file.get_tensor, _specs(path)
    except SafetensorError as error:
        raise ValueError(f"it is a damaged safetensors file ({error})") from error


def _check_header(path: Path) -> None:
    """Count the entries before anything is made of them: each begins with a brace."""
    with path.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
    if header.count(b"{") > MAX_ENTRIES:
        raise ValueError(f"it names more than {MAX_ENTRIES:,} tensors, as no checkpoint does")


def _specs(path: Path) -> dict[str, Spec]:
    """Read from the header, which the library has checked, so that no tensor is touched."""
    from safetensors.torch import _TYPES

    with path.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    if any(len(entry["shape"]) > MAX_AXES for entry in header.values() if "shape" in entry):
        raise ValueError(f"it has a tensor of more than {MAX_AXES} axes, as no checkpoint has")
    return {
        name: Spec(tuple(entry["shape"]), _TYPES.get(entry["dtype"], torch.uint8))
        for name, entry in header.items()
        if name != "__metadata__"
    }
