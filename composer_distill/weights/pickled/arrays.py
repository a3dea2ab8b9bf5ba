"""NumPy's arrays and scalars in a pickle, made by our own code from plain numbers alone."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from composer_distill.weights.pickled.machine import REMEDY, Refused
from composer_distill.weights.pickled.reach import Broken, Record

# NumPy 2 writes another module name than NumPy 1.
RECONSTRUCT = ("numpy._core.multiarray._reconstruct", "numpy.core.multiarray._reconstruct")
SCALAR = ("numpy._core.multiarray.scalar", "numpy.core.multiarray.scalar")
PLAIN = frozenset(("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))
_ORDERS = ("<", ">", "|", "=")


def dtype_of(record: Any) -> np.dtype[Any]:
    """The type of plain numbers that a pickled ``numpy.dtype`` means.

    ``numpy.dtype`` has a ``__setstate__`` that can be told to take bytes for pointers, so that it
    is never called: of the state the byte order alone is looked at.

    Raises:
        Broken: If it is of anything but booleans, integers and floats.
    """
    code = record.args[0] if _is(record, ("numpy.dtype",)) and record.args else None
    order = record.state[1] if code in PLAIN and type(record.state) is tuple else "="
    if type(code) is not str or code not in PLAIN or order not in _ORDERS:
        raise Broken("a NumPy type that is not of plain numbers")
    return np.dtype(order + code)


def scalar(dtype: Any = None, raw: Any = None) -> Any:
    """A pickled NumPy scalar, as a number of Python's; other kinds stay a stand-in.

    Example:
        >>> scalar(Record("numpy.dtype", ("f4",)), np.float32(0.5).tobytes())
        0.5
    """
    try:
        kind = dtype_of(dtype)
    except Broken:
        return Record(SCALAR[0], (dtype, raw))
    if type(raw) is not bytes or len(raw) != kind.itemsize:
        raise Broken("a NumPy scalar of another size")
    return np.frombuffer(raw, kind)[0].item()


def array(record: Any) -> np.ndarray[Any, Any]:
    """The array that a pickled one stands for.

    Raises:
        Broken: If it is of anything but plain numbers, or its bytes are not as many as it says.
    """
    state = record.state if _is(record, RECONSTRUCT) else None
    if type(state) is not tuple or len(state) != 5:
        raise Broken("a NumPy array without values")
    _, shape, dtype, fortran, raw = state
    kind = dtype_of(dtype)
    if type(raw) is not bytes or type(shape) is not tuple or not all(map(_is_length, shape)):
        raise Broken("a NumPy array of another form")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran is True else "C").copy()


def names(make: Any) -> Mapping[str, Any]:
    """What NumPy's names in a pickle stand for, given what makes a stand-in for a name."""
    inert = {path: make(path) for path in ("numpy.ndarray", *RECONSTRUCT)}
    return {"numpy.dtype": _dtype, **inert, **dict.fromkeys(SCALAR, scalar)}


def _dtype(*args: Any) -> Record:
    return Record("numpy.dtype", args, check=_check_type)


def _check_type(state: Any) -> None:
    """Refuse types within types and with fields: that is how bytes become pointers."""
    if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
        raise Refused(f"it asks for a NumPy type that is not of plain values; {REMEDY}")


def _is(value: Any, paths: tuple[str, ...]) -> bool:
    return type(value) is Record and value.path in paths


def _is_length(value: Any) -> bool:
    return type(value) is int and value >= 0
