"""Reads plain values as the arguments of a call, by the types that its signature names."""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from composer.core import Time

from composer_distill.config.names import unknown

_UNSAID = "A configuration holds plain values alone: build Distillation in Python for that."
_ERRORS = (FileNotFoundError, OSError, ImportError, TypeError, ValueError)
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
_SHOWN = {str: "text", int: "integer", float: "number", dict: "mapping"}
_TIME = "a time such as '200ba' or '0.5dur'"
# An error begins with the argument that it is about, perhaps behind whose it is
_ABOUT = re.compile(r"(?:teacher [^:]*: (?=\w+ (?:must|as a) ))?(\w+)(?=[\s:,(=]|$)")


@dataclass(frozen=True)
class Kind:
    """A kind of object that a configuration can describe.

    Args:
        read: Makes it of a value and its path.
        told: How it is written, for errors.
        by_name: Whether text alone can name it, and not only a mapping.
    """

    read: Callable[[Any, str, "Reader"], Any]
    told: str
    by_name: bool = True


@dataclass(frozen=True)
class Reader:
    """Makes objects of plain values.

    Args:
        kinds: How to read what is neither plain nor a list, by the type in a signature.
    """

    kinds: Mapping[Any, Kind]

    def build(self, make: Callable[..., Any], given: Any, path: str) -> Any:
        """Call ``make`` with the arguments that a mapping gives.

        Args:
            make: A class or a function.
            given: The mapping.
            path: Where it stands, for errors.

        Raises:
            TypeError, ValueError, OSError, ImportError: Whatever is wrong, under its path.
        """
        return place(make, path, self.arguments(make, given, path))

    def arguments(
        self, make: Callable[..., Any], given: Any, path: str, taken: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Read the arguments of a call, of which ``taken`` come from elsewhere.

        Raises:
            TypeError: If ``given`` is no mapping, or a value of the wrong kind.
            ValueError: If a key is no argument, or one is missing.
        """
        if not isinstance(given, Mapping):
            raise TypeError(f"{path} must be a mapping of names to values, got {_show(given)}.")
        known = {
            name: parameter
            for name, parameter in inspect.signature(make).parameters.items()
            if name not in taken
        }
        who = getattr(make, "__name__", str(make))
        for key in given:
            if key not in known:
                raise ValueError(f"{path}.{key}: {who} has no such argument. {unknown(key, known)}")
        for name, parameter in known.items():
            if parameter.default is parameter.empty and name not in given:
                raise ValueError(f"{path}.{name} is missing, which {who} needs.")
        hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
        return {key: self.value(hints[key], value, f"{path}.{key}") for key, value in given.items()}

    def value(self, hint: Any, value: Any, path: str) -> Any:
        """Read a value as one of the types of ``hint``.

        Raises:
            TypeError: If it is none of them.
            ValueError: If it is a word that is not among those known.
        """
        options = _alternatives(hint)
        if value is None and type(None) in options:
            return None
        kinds = list({id(k): k for o in options if (k := self._kind(o))}.values())
        if isinstance(value, str) and str not in options and Path not in options:
            words = [w for o in options if get_origin(o) is Literal for w in get_args(o)]
            if words:
                return _chosen(value, words, path)
        if _is_plain(value, options):
            if Time in options and isinstance(value, str):
                _check_time(value, path, self._described(options))
            return value
        wants_mapping = isinstance(value, Mapping)
        if kinds and (wants_mapping or (isinstance(value, str) and kinds[0].by_name)):
            return kinds[0].read(value, path, self)
        if isinstance(value, Sequence) and not isinstance(value, str):
            for option in options:
                if get_origin(option) in (Sequence, list, tuple):
                    return self._listed(option, value, path)
        if wants_mapping and Mapping[str, Any] in options:
            return {str(key): each for key, each in value.items()}
        told = f"{path} must be {self._described(options)}, got {_show(value)}."
        raise TypeError(told + _advice(options, kinds, value))

    def _listed(self, option: Any, value: Sequence[Any], path: str) -> Any:
        of, origin = get_args(option), get_origin(option)
        if origin is not tuple:
            return [self.value(of[0], each, f"{path}[{i}]") for i, each in enumerate(value)]
        if len(value) != len(of):
            raise ValueError(f"{path} must have {len(of)} entries, got {len(value)}.")
        return tuple(
            self.value(hint, each, f"{path}[{i}]")
            for i, (hint, each) in enumerate(zip(of, value, strict=True))
        )

    def _kind(self, option: Any) -> Kind | None:
        return next((kind for known, kind in self.kinds.items() if known == option), None)

    def _described(self, options: Sequence[Any]) -> str:
        words: dict[Any, str] = {float: _WORDS[float]} if float in options else {}
        told = [
            words.get(o) or _WORDS.get(o) for o in options if o is not str or Time not in options
        ]
        told += [kind.told for o in options if (kind := self._kind(o))]
        told += [" or ".join(map(repr, get_args(o))) for o in options if get_origin(o) is Literal]
        told += [_TIME for o in options if o is Time]
        told += ["a list" for o in options if get_origin(o) in (Sequence, list, tuple)]
        told += ["null" for o in options if o is type(None)]
        return ", or ".join(dict.fromkeys(word for word in told if word)) or "left out"


def place(
    make: Callable[..., Any], path: str, arguments: Mapping[str, Any], source: str = ""
) -> Any:
    """Call ``make``; what it raises says where in the configuration the fault is.

    Args:
        make: A class or a function.
        path: Where the mapping of its arguments stands.
        arguments: The arguments.
        source: The key within ``path`` that an error is about which names no argument: the one
            that says where ``make`` reads.

    Raises:
        TypeError, ValueError, OSError, ImportError: What ``make`` raised, of its kind.
    """
    try:
        return make(**arguments)
    except _ERRORS as error:
        kind = next(kind for kind in _ERRORS if isinstance(error, kind))
        found = _ABOUT.match(str(error))
        key = found[1] if found and found[1] in arguments else source
        raise kind(f"{path}.{key}: {error}" if key else f"{path}: {error}") from error


def _alternatives(hint: Any) -> tuple[Any, ...]:
    if get_origin(hint) in (Union, types.UnionType):
        return tuple(chain.from_iterable(map(_alternatives, get_args(hint))))
    return (hint,)


def _is_plain(value: Any, options: Sequence[Any]) -> bool:
    if isinstance(value, bool):
        return bool in options
    if isinstance(value, int):
        return int in options or float in options
    if isinstance(value, float):
        return float in options
    return isinstance(value, str) and any(kind in options for kind in (str, Path, Time))


def _check_time(value: str, path: str, told: str) -> None:
    try:
        Time.from_timestring(value)
    except ValueError as error:
        raise ValueError(f"{path} must be {told}, got {_show(value)}.") from error


def _chosen(value: str, words: Sequence[str], path: str) -> str:
    if value not in words:
        raise ValueError(f"{path}: there is no {value!r}. {unknown(value, words)}")
    return value


def _advice(options: Sequence[Any], kinds: Sequence[Kind], value: Any) -> str:
    functions = any(get_origin(option) is Callable for option in options) and not kinds
    return f" {_UNSAID}" if functions or callable(value) else ""


def _show(value: Any) -> str:
    kind = type(value)
    return "null" if value is None else f"the {_SHOWN.get(kind, kind.__name__)} {value!r}"
