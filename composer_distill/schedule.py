"""When distillation acts and how much each term weighs: pure functions of Composer's ``State``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import numpy as np
from composer.core import State, Time, TimeUnit

from composer_distill.notes import noted

Weight = float | Callable[[State], float]
"""A number, or a schedule: any callable of the Trainer's ``State``."""

_MAX_DENOMINATOR = 10**9  # reads 0.1 as 1/10, so that windows open at the very batch


@dataclass(frozen=True)
class Window:
    """The part of training in which distillation acts: ``start <= now < end``.

    Args:
        start: First moment inside.
        end: First moment outside again.

    Raises:
        ValueError: If the two share a unit and ``start`` is later than ``end``.
    """

    start: Time
    end: Time

    def __post_init__(self) -> None:
        if self.start.unit == self.end.unit and self.start.value > self.end.value:
            raise _order_error(self.start, self.end)

    @property
    def is_all(self) -> bool:
        """Whether it is all of training."""
        bounds = (self.start, self.end)
        fractions = all(bound.unit == TimeUnit.DURATION for bound in bounds)
        return fractions and self.start.value == 0 and self.end.value == 1

    def contains(self, state: State) -> bool:
        """Return whether the current batch lies inside, exact to the batch.

        Raises:
            ValueError: If a bound is a fraction and the length of training in batches is unknown.
        """
        return _reached(self.start, state) and not _reached(self.end, state)

    def is_over(self, state: State) -> bool:
        """Return whether the window has closed, and no later batch of this training is inside."""
        return _reached(self.end, state)

    def is_idle(self, state: State, within: "Window | None" = None) -> bool:
        """Return whether no batch of this training lies inside, as far as units can be compared.

        Args:
            state: The Trainer's state.
            within: Another window, inside of which the batch must lie too.
        """
        both = [self] if within is None else [self, within]
        ends = [window.end for window in both] + [Time(1.0, TimeUnit.DURATION)]
        for start in (window.start for window in both):
            for end in ends:
                first, bound = _comparable(start, end, state)
                if first is not None and bound is not None and first >= bound:
                    return True
        return False

    def check(self, state: State) -> None:
        """Compare bounds of unlike units, now that the Trainer knows how long an epoch is.

        An end at 1.0, the default, means whenever training ends: a run shorter than ``start`` is no
        error, since a later ``fit`` may go on.

        Raises:
            ValueError: If ``start`` is later than ``end``.
        """
        if self.end.unit == TimeUnit.DURATION and self.end.value == 1:
            return
        start, end = _comparable(self.start, self.end, state)
        if start is not None and end is not None and start > end:
            raise _order_error(self.start, self.end)


ALWAYS = Window(Time(0.0, TimeUnit.DURATION), Time(1.0, TimeUnit.DURATION))
"""All of training."""


def to_time(value: float | str | Time, name: str) -> Time:
    """Read a bound of a window.

    Args:
        value: A fraction of training in [0, 1], a Composer time string (``'200ba'``, ``'1ep'``,
            ``'10000tok'``, ``'0.5dur'``) or a ``Time``.
        name: The argument's name, for errors.

    Raises:
        TypeError: If ``value`` is of another type.
        ValueError: If it can't be read or is negative, or a fraction is above 1.

    Example:
        >>> to_time(0.25, "start_dur")
        Time(0.25, TimeUnit.DURATION)
        >>> to_time("200ba", "end_dur")
        Time(200, TimeUnit.BATCH)
    """
    if isinstance(value, str):
        try:
            time: Time = Time.from_timestring(value)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{name} must be a fraction of training in [0, 1] or a Composer time such as "
                f"'200ba', '1ep', '10000tok' or '0.5dur', got {value!r}. Add a number or a unit."
            ) from error
    elif isinstance(value, Time):
        time = value
    elif isinstance(value, Real) and not isinstance(value, bool):
        # a float32 0.1 is meant as 0.1, and prints so
        exact = float(str(value)) if isinstance(value, np.floating) else float(value)
        time = Time(exact, TimeUnit.DURATION)
    else:
        raise TypeError(
            f"{name} must be a fraction of training, a Composer time string or a Time, "
            f"got {type(value).__name__}."
        )
    if time.unit == TimeUnit.DURATION and not 0 <= time.value <= 1:
        raise ValueError(
            f"{name} as a fraction of training must lie in [0, 1], got {value!r}. "
            f"For a number of epochs or batches write '3ep' or '200ba'."
        )
    if time.value < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}.")
    return time


def check_weight(weight: object, name: str) -> None:
    """Refuse at construction what could never be a weight.

    Raises:
        TypeError: If ``weight`` is neither a number nor callable.
        ValueError: If it is a number that is negative, infinite or NaN.
    """
    if isinstance(weight, Real) and not isinstance(weight, bool):
        _check_value(float(weight), name, "")
    elif not callable(weight):
        raise TypeError(
            f"{name} must be a number or a callable of the Trainer's State, "
            f"got {type(weight).__name__}."
        )


def weight_now(weight: Weight, state: State, name: str) -> float:
    """Return the value of a weight for the current batch.

    Args:
        weight: A number, or a callable of ``state``; Composer's schedulers are such callables.
        state: The Trainer's state.
        name: The argument's name, for errors.

    Raises:
        ValueError: If a schedule returns a negative, infinite or NaN value.
    """
    if not callable(weight):
        return float(weight)
    with noted(name, weight, f" at batch {int(state.timestamp.batch)}"):
        found = weight(state)
    try:
        value = float(found)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} is a schedule that must return a number, got {found!r} at batch "
            f"{int(state.timestamp.batch)}. Return a float."
        ) from error
    _check_value(value, name, f" at batch {int(state.timestamp.batch)}")
    return value


def elapsed_fraction(state: State) -> Fraction:
    """Return what fraction of training lies behind the current batch, exact to the batch.

    Composer's own ``state.get_elapsed_duration()`` moves only once an epoch when ``max_duration``
    is in epochs; this counts the batches inside the epoch too.

    Raises:
        ValueError: If ``max_duration`` is in epochs and the dataloader has no length, or in
            iterations.
    """
    duration, now = state.max_duration, state.timestamp
    if duration is None:
        raise ValueError(
            "start_dur or end_dur is a fraction of training, but the Trainer has no max_duration. "
            "Pass max_duration, or give the bound as a time such as '200ba'."
        )
    if duration.unit == TimeUnit.SECOND:
        return Fraction(now.total_wct.total_seconds()) / duration.value
    if duration.unit == TimeUnit.EPOCH and state.dataloader_len is not None:
        per_epoch = int(state.dataloader_len)
        done = int(now.epoch) * per_epoch + int(now.batch_in_epoch)
        return Fraction(done, per_epoch * int(duration.value))
    if duration.unit in (TimeUnit.EPOCH, TimeUnit.ITERATION):
        raise ValueError(
            f"start_dur or end_dur is a fraction of max_duration='{duration.to_timestring()}', but "
            "how many batches that is can't be known: the dataloader has no length. Give the bound "
            "as a time such as '200ba', or set train_subset_num_batches."
        )
    return Fraction(int(now.get(duration.unit).value), int(duration.value))


def _check_value(value: float, name: str, where: str) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(
            f"{name} must be a finite number, zero or above, got {value}{where}. "
            "To subtract a term, negate the loss itself."
        )


def _fraction(time: Time) -> Fraction:
    return Fraction(time.value).limit_denominator(_MAX_DENOMINATOR)


def _reached(bound: Time, state: State) -> bool:
    if bound.unit is TimeUnit.DURATION:
        if bound.value == 0:
            return True
        if bound.value == 1:
            return False  # a batch that trains lies before the end of training
        return elapsed_fraction(state) >= _fraction(bound)
    if bound.unit is TimeUnit.SECOND:
        return state.timestamp.total_wct.total_seconds() >= bound.value
    return state.timestamp.get(bound.unit) >= bound


def _comparable(
    start: Time, end: Time, state: State
) -> tuple[Fraction, Fraction] | tuple[None, None]:
    """Return both bounds in one unit, or Nones where no conversion is known."""
    duration = state.max_duration
    per_epoch = None if state.dataloader_len is None else int(state.dataloader_len)
    found = []
    for bound in (start, end):
        value, unit = _fraction(bound), bound.unit
        if unit == TimeUnit.DURATION and duration is not None:
            value, unit = value * int(duration.value), duration.unit
        if unit == TimeUnit.EPOCH and per_epoch is not None:
            value, unit = value * per_epoch, TimeUnit.BATCH
        found.append((value, unit))
    (first, first_unit), (second, second_unit) = found
    return (first, second) if first_unit == second_unit else (None, None)


def _order_error(start: Time, end: Time) -> ValueError:
    return ValueError(
        f"start_dur ('{start.to_timestring()}') is later than end_dur ('{end.to_timestring()}'), "
        "so distillation would never act. Swap them."
    )
