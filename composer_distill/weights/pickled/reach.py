"""How much a value comes to when it is written out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

MAX_DEPTH = 100


class Broken(ValueError):
    """A pickle is damaged, out of proportion, or of a kind that is not read."""


def _accept(state: Any) -> None:
    """Any state will do where nothing reads it."""


@dataclass(eq=False)
class Record:
    """Stands in for an object of a class that is not made.

    Args:
        path: The name of the class.
        args: What it would have been made of.
        state: What it would have been told then.
        check: Refuses a state that only an attack has.
    """

    path: str
    args: tuple[Any, ...]
    state: Any = None
    check: Callable[[Any], None] = _accept


@dataclass
class _Frame:
    """A container whose contents are being counted."""

    held: Any
    rest: Iterator[Any]
    size: int = 56
    height: int = 1


def check_reach(value: Any, limit: int) -> None:
    """Refuse a value that holds itself, is nested too deep, or would be huge were nothing shared.

    A list that holds one list twice, which holds one twice, and so on, takes a few bytes in a
    pickle and in memory, and whoever walks through it never comes back.

    Args:
        value: What a pickle made.
        limit: How many bytes it may come to, counted again for each place that it stands in.

    Raises:
        Broken: If it does.

    Example:
        >>> check_reach({"weight": [1, 2]}, 1000)
        >>> doubled = ["x"]
        >>> for _ in range(40):
        ...     doubled = [doubled, doubled]
        >>> check_reach(doubled, 1_000_000)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        composer_distill.weights.pickled.reach.Broken: its values come to far more than its size...
    """
    done: dict[int, _Frame] = {}
    path = [_Frame(None, iter((value,)))]
    within: set[int] = set()
    while path:
        inner = _advance(path[-1], done)
        if inner is not None:
            if id(inner.held) in within:
                raise Broken("a value that holds itself")
            within.add(id(inner.held))
            path.append(inner)
        frame = path[-1]
        if frame.size > limit:
            raise Broken("its values come to far more than its size tells")
        if len(path) + frame.height > MAX_DEPTH + 2:
            raise Broken(f"values nested more than {MAX_DEPTH} deep")
        if inner is None:
            path.pop()
            within.discard(id(frame.held))
            done[id(frame.held)] = frame
            if path:
                _add(path[-1], frame)


def _advance(frame: _Frame, done: dict[int, _Frame]) -> _Frame | None:
    """Count what a container holds, up to the next container that was not counted yet."""
    for item in frame.rest:
        inside = _inside(item)
        if inside is None:
            frame.size += 8 + (len(item) if type(item) in (str, bytes, bytearray) else 0)
        elif id(item) in done:
            _add(frame, done[id(item)])
        else:
            return _Frame(item, iter(inside))
    return None


def _add(frame: _Frame, inner: _Frame) -> None:
    frame.size += inner.size
    frame.height = max(frame.height, inner.height + 1)


def _inside(item: Any) -> Iterable[Any] | None:
    """What a container holds; None for anything else."""
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if isinstance(item, dict):
        return chain(item, item.values())
    if isinstance(item, Record):
        return item.args, item.state
    return None
