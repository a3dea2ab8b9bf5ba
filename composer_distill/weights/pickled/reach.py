"""How much a value comes to when it is written out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

MAX_DEPTH = 100  # the deepest real one, a tokenizer within a run, has 11
_EMPTY = 56  # bytes of a container without its contents
_LEAVES = frozenset((str, bytes, bytearray, int, float, bool, type(None)))


class Broken(ValueError):
    """A pickle is damaged, out of proportion, or of a kind that is not read."""


def _accept(state: Any) -> None:
    """Any state will do where nothing reads it."""


@dataclass(eq=False, slots=True)
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
    size: int = _EMPTY
    height: int = 1

    def add(self, size: int, height: int) -> None:
        """Count a container within this one."""
        self.size += size
        self.height = max(self.height, height + 1)


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
    done: dict[int, tuple[int, int]] = {}
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
            done[id(frame.held)] = frame.size, frame.height
            if path:
                path[-1].add(frame.size, frame.height)


def _advance(frame: _Frame, done: dict[int, tuple[int, int]]) -> _Frame | None:
    """Count what a container holds, up to the next one that holds others and is not counted yet."""
    for item in frame.rest:
        inside = _inside(item)
        if inside is None:
            frame.size += _size(item)
        elif id(item) in done:
            frame.add(*done[id(item)])
        elif (size := _flat(inside)) is not None:
            done[id(item)] = size, 1
            frame.add(size, 1)
        else:
            return _Frame(item, iter(_inside(item) or ()))
    return None


def _flat(inside: Iterable[Any]) -> int | None:
    """The size of a container that holds no other, as most do; None where it holds one."""
    size = _EMPTY
    for item in inside:
        if _inside(item) is not None:
            return None
        size += _size(item)
    return size


def _size(item: Any) -> int:
    return 8 + (len(item) if type(item) in (str, bytes, bytearray) else 0)


def _inside(item: Any) -> Iterable[Any] | None:
    """What a container holds; None for anything else."""
    if type(item) in _LEAVES:
        return None
    if isinstance(item, list | tuple | set | frozenset):
        return item
    if isinstance(item, dict):
        return chain(item, item.values())
    if isinstance(item, Record):
        return item.args, item.state
    return None
