"""What a ``Teacher`` refuses at construction, each with a remedy."""

import math
from numbers import Real
from typing import Any

import torch
from composer.core import Time

from composer_distill.schedule import Weight, Window, to_time


def refuse_options(options: dict[str, Any], arguments: tuple[str, ...], method: str) -> None:
    """Refuse options that a constructor gives a value of its own."""
    given = [argument for argument in arguments if argument in options]
    if given:
        raise TypeError(f"Teacher.{method} takes no {given[0]}: its source is its first argument")


def checked_weight(weight: Weight, label: str) -> Weight:
    """Return a teacher's share, a number as a float, or raise ValueError."""
    if callable(weight):
        return weight
    number = isinstance(weight, Real) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight <= 0:
        raise ValueError(
            f"{label}: weight must be a positive finite number, but is {weight!r}; leave the "
            "teacher out if it shall not count"
        )
    return float(weight)


def checked_callable(function: Any, argument: str, label: str) -> Any:
    """Return a function of the user, or raise TypeError."""
    if function is not None and not callable(function):
        raise TypeError(
            f"{label}: {argument} must be callable, but is a {type(function).__name__}; "
            f"pass a function of one argument"
        )
    return function


def checked_dtype(dtype: Any, label: str) -> torch.dtype | None:
    """Return a type for weights, or raise TypeError."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(
            f"{label}: dtype must be a floating-point torch.dtype, but is {dtype!r}; "
            "use torch.bfloat16, torch.float16 or torch.float32"
        )
    return dtype


def checked_size(size: Any, label: str) -> int | None:
    """Return a number of samples, or raise ValueError."""
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise ValueError(
            f"{label}: microbatch_size must be a whole number of at least 1, but is {size!r}; "
            "leave it out to read whole batches"
        )
    return size


def checked_window(start: float | str | Time, end: float | str | Time, label: str) -> Window:
    """Return when a teacher answers, or raise TypeError or ValueError."""
    return Window(to_time(start, f"{label}: start_dur"), to_time(end, f"{label}: end_dur"))
