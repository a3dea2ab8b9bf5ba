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
_HAS_MEMORY = sys.implementation.name == "cpython"  # that can be read


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
    host, python, numpy = torch.get_rng_state(), _PYTHON.read(), _NUMPY.read()
    try:
        if device is None or device == _CPU or device.type in ("cpu", "meta"):
            yield
        else:
            with torch.random.fork_rng(devices=[device], device_type=device.type):
                yield
    finally:
        torch.set_rng_state(host)
        _PYTHON.restore(python)
        _NUMPY.restore(numpy)


class _Stream:
    """A random stream of the host, whose state is got and set only where its memory has changed.

    A state takes ten to seventy times as long to get as its memory to compare.

    Args:
        get: Returns the state.
        put: Sets it.
        memory: Returns the memory that holds all of it; None where that is not known.
    """

    def __init__(
        self, get: Callable[[], Any], put: Callable[[Any], None], memory: Callable[[], Any]
    ) -> None:
        self._get, self._put, self._memory = get, put, memory
        self._last: tuple[Any, Any] = (None, None)

    def read(self) -> tuple[Any, Any]:
        """Return the state and the memory that it was got from, or None for the latter."""
        memory, found = self._memory(), self._last
        if memory is None or memory != found[1]:
            state = self._get()
            found = (state, memory if memory == self._memory() else None)  # else a thread drew
            self._last = found
        return found

    def restore(self, found: tuple[Any, Any]) -> None:
        """Set the state that ``read`` returned, if the stream has moved since."""
        state, memory = found
        if memory is None or memory != self._memory():
            self._put(state)


_TWISTER: Any = getattr(random, "_inst", None)
_RANDOM_STATE: Any = getattr(np.random.get_state, "__self__", None)
_MT19937_BYTES = 4 * 624 + 4  # its key, and its place in it


def _python_memory() -> Any:
    """Return the memory of Python's generator, and its second Gaussian of a pair."""
    if type(_TWISTER) is not random.Random or not _HAS_MEMORY:
        return None
    return _memory_of(_TWISTER, _random.Random), getattr(_TWISTER, "gauss_next", None)


def _numpy_memory() -> Any:
    """Return the memory of NumPy's generator, and of what holds its second Gaussian of a pair."""
    generator: Any = vars(np.random)["get_bit_generator"]()  # which not all stubs know
    usual = type(_RANDOM_STATE) is np.random.RandomState and type(generator) is np.random.MT19937
    if not usual or not _HAS_MEMORY:
        return None
    words = ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    return words, _memory_of(_RANDOM_STATE, np.random.RandomState)


def _memory_of(instance: Any, kind: type) -> bytes:
    """Return what an instance of a type that is written in C holds."""
    start = object.__basicsize__
    return ctypes.string_at(id(instance) + start, kind.__basicsize__ - start)


_PYTHON = _Stream(random.getstate, random.setstate, _python_memory)
_NUMPY = _Stream(lambda: np.random.get_state(legacy=False), np.random.set_state, _numpy_memory)
