"""Which form each entry of a manifest has: a cache may come from somebody else."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

_LARGEST = 1 << 31

_KINDS = ("logits", "top_k", "samples")


def check_forms(entries: Mapping[str, Any]) -> None:
    """Refuse entries that are of another form than those of a manifest.

    Raises:
        TypeError: If one is; the error names it.

    Example:
        >>> check_forms({"samples": 3})
        >>> check_forms({"samples": "3"})
        Traceback (most recent call last):
        ...
        TypeError: its samples are of another form
    """
    for name, value in entries.items():
        if name in _FORMS and not _FORMS[name](value):
            raise TypeError(f"its {name} are of another form")


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _or_none(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


def _is_some(value: Any) -> bool:
    return _is_count(value) and 0 < value < _LARGEST


def _is_temperature(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def _are_names(value: Any) -> bool:
    return type(value) in (tuple, list) and all(map(_is_text, value))


def _is_dtype(value: Any) -> bool:
    return _is_text(value) and (not value or isinstance(vars(torch).get(value), torch.dtype))


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "teacher": _is_text,
    "kind": lambda value: _is_text(value) and value in _KINDS,
    "count": _or_none(_is_some),
    "temperature": _or_none(_is_temperature),
    "seed": _or_none(_is_count),
    "dtype": _or_none(_is_dtype),
    "vocab_size": _or_none(_is_some),
    "tokenizer": _or_none(_is_text),
    "labels": _or_none(_are_names),
    "finished": lambda value: type(value) is bool,
    "by_position": lambda value: type(value) is bool,
    "classes": lambda value: _is_count(value) and value < _LARGEST,
    "fields": _or_none(_are_names),
    "lacked": _are_names,
    "samples": _is_count,
    "positions": _is_count,
    "bytes": _is_count,
    "mass": _or_none(lambda value: type(value) in (int, float)),
    "index": _or_none(_is_text),
    "versions": lambda value: type(value) is dict,
    "checksum": _is_text,
}
