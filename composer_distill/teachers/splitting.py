"""Batches in pieces, copies of their containers, and whether one still holds what it held."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor


def shallow_copy(batch: Any) -> Any:
    """Copy a batch's containers, at every depth, and share what they hold.

    Args:
        batch: A tensor, tuple, list, mapping or dataclass, nested at will.

    Example:
        >>> batch = {"ids": [1, 2]}
        >>> view = shallow_copy(batch)
        >>> view.pop("ids").append(3)
        >>> batch
        {'ids': [1, 2]}
    """
    return _rebuild(batch, lambda leaf: leaf)


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to each tensor of a batch, leaving the batch itself as it is."""
    return _rebuild(batch, lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf)


def split(batch: Any, size: int) -> Iterator[Any]:
    """Cut a batch into pieces of ``size`` samples, the last one as long as it comes.

    Tensors, lists and tuples of one entry a sample are cut along their first axis. What has one
    entry in all, or no axis, goes with every piece.

    Args:
        batch: A tensor, tuple, list, mapping or dataclass, nested at will.
        size: The number of samples in a piece.

    Raises:
        ValueError: If the tensors do not agree on the number of samples.

    Example:
        >>> import torch
        >>> [piece["x"].tolist() for piece in split({"x": torch.arange(5)}, 2)]
        [[0, 1], [2, 3], [4]]
    """
    samples = count_samples(batch)
    for start in range(0, samples, size):
        yield _cut(batch, slice(start, min(start + size, samples)), samples)


def take(batch: Any, rows: Tensor, samples: int) -> Any:
    """Return some samples of a batch, as :func:`split` cuts it.

    Args:
        batch: A tensor, tuple, list, mapping or dataclass, nested at will.
        rows: Which samples.
        samples: How many the batch has.

    Shape:
        - rows: ``(n,)``, whole numbers.

    Example:
        >>> import torch
        >>> batch = {"x": torch.arange(3), "from": ["a", "b", "c"], "scale": 2.0}
        >>> take(batch, torch.tensor([0, 2]), 3)
        {'x': tensor([0, 2]), 'from': ['a', 'c'], 'scale': 2.0}
    """
    return _cut(batch, rows, samples)


def count_samples(batch: Any) -> int:
    """The number of samples that a batch's tensors agree on.

    Raises:
        ValueError: If they do not agree, or there is no tensor.
    """
    lengths: dict[int, None] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.ndim:
            lengths[tensor.shape[0]] = None
        return tensor

    map_tensors(batch, note)
    samples = [length for length in lengths if length != 1] or list(lengths)
    if len(samples) != 1:
        found = ", ".join(map(str, samples)) or "no tensors"
        raise ValueError(
            "microbatch_size needs a batch whose tensors agree on the length of their first axis; "
            f"found {found}; arrange it with input_fn, or leave microbatch_size out"
        )
    return samples[0]


def parts_of(batch: Any) -> list[tuple[Any, int]]:
    """Return all that a batch holds, each tensor with the number of times it was written to.

    Args:
        batch: A tensor, tuple, list, mapping or dataclass, nested at will.
    """
    return [(part, _version(part)) for part in _walk(batch)]


def same_parts(before: list[tuple[Any, int]], now: list[tuple[Any, int]]) -> bool:
    """Return whether a batch holds the very tensors that it held, unchanged.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(2)}
        >>> before = parts_of(batch)
        >>> same_parts(before, parts_of(shallow_copy(batch)))
        True
        >>> _ = batch["x"].add_(1)
        >>> same_parts(before, parts_of(batch))
        False
    """
    return len(before) == len(now) and all(
        version == later and (part is other or _equal(part, other))
        for (part, version), (other, later) in zip(before, now, strict=True)
    )


def _version(part: Any) -> int:
    """Return how often a tensor was written to; one of inference mode does not count."""
    return part._version if isinstance(part, Tensor) and not part.is_inference() else 0


def _walk(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield name
            yield from _walk(entry)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for entry in value:
            yield from _walk(entry)
    elif _is_dataclass(value):
        yield from _walk(_fields(value))
    else:
        yield value


def _equal(part: Any, other: Any) -> bool:
    plain = str | int | float | bool | bytes | None
    return isinstance(part, plain) and isinstance(other, plain) and part == other


def _cut(value: Any, rows: slice | Tensor, samples: int) -> Any:
    if isinstance(value, Tensor):
        cuts = value.ndim and value.shape[0] == samples
        at = rows.to(value.device) if isinstance(rows, Tensor) else rows
        return value[at] if cuts else value
    if type(value) in (list, tuple) and len(value) == samples and not _holds_tensors(value):
        if isinstance(rows, slice):
            return value[rows]
        return type(value)(value[row] for row in rows.tolist())
    return _rebuild_once(value, lambda item: _cut(item, rows, samples))


def _holds_tensors(value: Any) -> bool:
    found = []
    map_tensors(value, found.append)
    return bool(found)


def _rebuild(value: Any, leaf: Callable[[Any], Any]) -> Any:
    if _is_container(value):
        return _rebuild_once(value, lambda item: _rebuild(item, leaf))
    return leaf(value)


def _is_container(value: Any) -> bool:
    return isinstance(value, Mapping | tuple | list) or _is_dataclass(value)


def _is_dataclass(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(value: Any) -> dict[str, Any]:
    """Return what a dataclass holds by name; a field may be unset."""
    names = (field.name for field in dataclasses.fields(value))
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _rebuild_once(value: Any, function: Callable[[Any], Any]) -> Any:
    """The container anew, of the same kind, with the function applied to each entry."""
    if isinstance(value, MutableMapping):  # a dict, an OrderedDict, a Hugging Face BatchEncoding
        view = copy.copy(value)
        for key, item in value.items():
            view[key] = function(item)
        return view
    if isinstance(value, Mapping):
        return {key: function(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(function, value))
    if isinstance(value, tuple | list):
        return type(value)(map(function, value))
    if _is_dataclass(value):
        view = copy.copy(value)
        for name, item in _fields(value).items():
            object.__setattr__(view, name, function(item))  # it may be frozen
        return view
    return value
