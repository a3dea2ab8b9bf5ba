"""Random streams, left as they were found."""

import _random
import ctypes
import random
import sys
from collections.abc import Callable, Iterator
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
    host, python, numpy = torch.get_rng_state(), _python.read(), _numpy.read()
    try:
        if device is None or device == _CPU or device.type == "meta":
            yield
        else:
            with torch.random.fork_rng(devices=[device], device_type=device.type):
                yield
    finally:
        torch.set_rng_state(host)
        _python.restore(python)
        _numpy.restore(numpy)


class _Stream:
    """A stream whose state takes ten to thirty times as long to get as its memory to compare.

    So the state is got only where the memory has changed since, and set only where it has.

    Args:
        get: Returns the stream's state, and whether its memory tells all of it.
        set: Sets the state.
        memory: Returns what differs after each draw; None where no such thing is known.
    """

    def __init__(
        self,
        get: Callable[[], tuple[Any, bool]],
        set: Callable[[Any], None],
        memory: Callable[[], Any],
    ) -> None:
        self._get, self._set, self._memory = get, set, memory
        self._found: tuple[Any, Any] = (None, None)

    def read(self) -> tuple[Any, Any]:
        """Return the stream's state, and its memory or None."""
        memory = self._memory()
        if memory is None or memory != self._found[1]:
            state, is_all = self._get()
            self._found = (state, memory if is_all else None)
        return self._found

    def restore(self, found: tuple[Any, Any]) -> None:
        """Put the stream back to what ``read`` returned, unless it has not moved."""
        state, memory = found
        if memory is None or memory != self._memory():
            self._set(state)


_HEAD = object.__basicsize__
_TWISTER: Any = random.random.__self__
_TWISTER_BYTES = _random.Random.__basicsize__ - _HEAD
_MT19937_BYTES = 4 * 624 + 4  # its key, and its place in it


def _python_state() -> tuple[Any, bool]:
    return random.getstate(), True


def _python_memory() -> Any:
    """Return the memory of Python's generator, and its second Gaussian of a pair."""
    if sys.implementation.name != "cpython":
        return None
    return ctypes.string_at(id(_TWISTER) + _HEAD, _TWISTER_BYTES), _TWISTER.gauss_next


def _numpy_state() -> tuple[Any, bool]:
    """Return NumPy's state; a second Gaussian of a pair, where it holds one, lies elsewhere."""
    state: Any = np.random.get_state(legacy=False)
    return state, not state["has_gauss"]


def _numpy_memory() -> bytes | None:
    """Return the memory of NumPy's global generator; None for any but its usual kind."""
    generator = np.random.get_bit_generator()  # pyright: ignore[reportAttributeAccessIssue]
    if type(generator) is not np.random.MT19937:
        return None
    return ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)


_python = _Stream(_python_state, random.setstate, _python_memory)
_numpy = _Stream(_numpy_state, np.random.set_state, _numpy_memory)
