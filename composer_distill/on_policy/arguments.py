"""What ``OnPolicy`` refuses at construction, each with a remedy."""

import math
from numbers import Integral, Real
from typing import Any

from composer.core import State

from composer_distill.schedule import Weight, weight_now


def check_number(
    value: Any,
    name: str,
    least: float,
    most: float | None,
    *,
    whole: bool = False,
    above: bool = False,
) -> None:
    """Refuse what is no number of a range.

    Args:
        value: What was passed.
        name: The argument's name.
        least: The least that is allowed.
        most: The most; None where nothing is too much.
        whole: Whether it must be an integer.
        above: Whether ``least`` itself is refused.

    Raises:
        TypeError: If it is no number, or none of that kind.
        ValueError: If it lies outside.
    """
    kind = Integral if whole else Real
    if not isinstance(value, kind) or isinstance(value, bool):
        needed = "an integer" if whole else "a number"
        also = " or a callable of the Trainer's State" if name == "fraction" else ""
        raise TypeError(
            f"{name} must be {needed}{also}, got {type(value).__name__}. "
            f"Pass one such as {1 if most is None else most}."
        )
    number = float(value)
    too_little = number <= least if above else number < least
    if not math.isfinite(number) or too_little or (most is not None and number > most):
        start = f"{'(' if above else '['}{least:g}"
        raise ValueError(
            f"{name} must lie in {start}, {'inf)' if most is None else f'{most:g}]'}, got {value}. "
            f"Pass one such as {1 if most is None else most}."
        )


def check_function(value: Any, name: str, arguments: str) -> None:
    """Refuse what can't be called.

    Raises:
        TypeError: If it can't.
    """
    if value is not None and not callable(value):
        raise TypeError(
            f"{name} must be callable as {arguments}, got {type(value).__name__}. Pass a function "
            "or leave it out."
        )


def fraction_now(fraction: Weight, state: State) -> float:
    """Return the share of batches that are drawn now.

    Raises:
        ValueError: If a schedule returns what is no share.
    """
    value = weight_now(fraction, state, "fraction")
    if value > 1.0:
        raise ValueError(
            f"fraction must lie in [0, 1], got {value} at batch {int(state.timestamp.batch)}. "
            "It is a share of batches: let the schedule return one."
        )
    return value
