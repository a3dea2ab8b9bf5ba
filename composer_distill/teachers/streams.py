"""Random streams, left as they were found."""

import _random
import ctypes
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_CPU = torch.device("cpu")


@contextmanager
def untouched_streams(device: torch.device | None = None) -> Iterator[None]:
    """Put the random streams of Python, NumPy, PyTorch and a device back where they stood.

    Args:
        device: The accelerator whose stream is kept too; None, or the CPU, for the host's alone.

    Example:
        >>> before = torch.get_rng_state()
        >>> with untouched_streams():
        ...     _ = torch.rand(3)
        >>> bool(torch.equal(torch.get_rng_state(), before))
        True
    """
    host, python, numpy = torch.get_rng_state(), _read_python(), _read_numpy()
    try:
        if device is None or device == _CPU or device.type in ("cpu", "meta"):
            yield
        else:
            with torch.random.fork_rng(devices=[device], device_type=device.type):
                yield
    finally:
        torch.set_rng_state(host)
        _restore_python(python)
        _restore_numpy(numpy)


# A state takes ten to thirty times as long to get as its memory to compare, so Python's is got only
# where the memory has changed since, and both are set only where it has.

_TWISTER: Any = getattr(random, "_inst", None)
_TWISTER_BYTES = _random.Random.__basicsize__ - object.__basicsize__
_MT19937_BYTES = 4 * 624 + 4  # its key, and its place in it
_last: tuple[Any, Any] = (None, None)


def _read_python() -> tuple[Any, Any]:
    """Return the state of Python's stream, and the memory that tells all of it or None."""
    global _last
    memory, found = _python_memory(), _last
    if memory is None or memory != found[1]:
        state = random.getstate()
        found = (state, memory if memory == _python_memory() else None)  # else another thread drew
        _last = found
    return found


def _restore_python(found: tuple[Any, Any]) -> None:
    state, memory = found
    if memory is None or memory != _python_memory():
        random.setstate(state)


def _python_memory() -> Any:
    """Return the memory of Python's generator, and its second Gaussian of a pair."""
    if sys.implementation.name != "cpython" or type(_TWISTER) is not random.Random:
        return None
    words = ctypes.string_at(id(_TWISTER) + object.__basicsize__, _TWISTER_BYTES)
    return words, getattr(_TWISTER, "gauss_next", None)


def _read_numpy() -> tuple[Any, Any]:
    """Return the state of NumPy's stream, and the memory whose change tells of a draw or None.

    A second Gaussian of a pair lies elsewhere: to draw it leaves the memory as it is.
    """
    memory = _numpy_memory()
    state: Any = np.random.get_state(legacy=False)
    unclear = state["has_gauss"] or memory != _numpy_memory()
    return state, None if unclear else memory


def _restore_numpy(found: tuple[Any, Any]) -> None:
    state, memory = found
    if memory is None or memory != _numpy_memory():
        np.random.set_state(state)


def _numpy_memory() -> bytes | None:
    """Return the memory of NumPy's global generator; None for any but its usual kind."""
    generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
