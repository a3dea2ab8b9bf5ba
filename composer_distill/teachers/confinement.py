"""While a model is built from what a file says, nothing else than that file is within reach."""

import importlib
import importlib.util
import logging
import os
import re
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from composer_distill.weights.wording import plain

# The largest real ones name 21,841 classes twice
MAX_ENTRIES = 200_000
_ONE_AT_A_TIME = threading.RLock()
_REMEDY = "build the model yourself and pass Teacher(model, checkpoint=...)"
# How timm is told to look for a model elsewhere
_ELSEWHERE = ("hf-hub:", "hf_hub:", "local-dir:", "file:")
_ORIGIN = ("_name_or_path", "name_or_path")  # where it was, which nothing opens
_LONGEST_PATH = 4096
_LINES = 50
_Door = tuple[Any, str, Callable[..., None]]
_KNOWN_ATTENTION = re.compile(r"\w*")


class Confined(ValueError):
    """Something outside was asked for."""


@contextmanager
def confined(where: str | None, settings: Any = None) -> Iterator[None]:
    """Let transformers build a model, tokenizer or configuration from one place alone.

    Out of reach are, whichever key asks for it: modules that lie beside a model, code and kernels
    of a hub, look-ups in other folders and repositories, and, where the place is no name on a hub,
    the network. It holds for this thread; others are not disturbed.

    Args:
        where: The folder, or the name on a hub, that may be read; None for none.
        settings: The configuration, to name the key in the error.

    Raises:
        ValueError: If something outside is asked for.
    """
    check_settings(settings)
    refused: list[str] = []

    def refuse(what: str, asked: Any = None) -> None:
        refused.append(f"{_key_of(settings, asked)} asks for {what}{_named(asked)}")
        raise Confined(refused[0])

    with _ONE_AT_A_TIME, ExitStack() as stack:
        thread = threading.get_ident()
        doors = chain(_doors(where, refuse), _doors_of_others(where, refuse))
        for owner, name, check in doors:
            stack.enter_context(_guarded(owner, name, check, thread))
        try:
            yield
        except Exception as error:
            if not refused:
                raise
            raise ValueError(_told(refused[0])) from error
        if refused:  # and what asked for it went on without
            raise ValueError(_told(refused[0]))


def check_settings(settings: Any) -> None:
    """Refuse a configuration that asks for code or for another place, at any depth.

    Args:
        settings: Plain data.

    Raises:
        ValueError: If it does; the error names the key.

    Example:
        >>> check_settings({"backbone_kwargs": {"trust_remote_code": True}})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: its configuration's backbone_kwargs.trust_remote_code asks for code of its ...
    """
    for path, key, value in entries(settings):
        text = value if type(value) is str else ""
        if key == "trust_remote_code" and value is not None and value is not False:
            raise ValueError(_told(f"its configuration's {plain(path)} asks for code of its own"))
        kernel = "attn_implementation" in path and not _KNOWN_ATTENTION.fullmatch(text)
        other = text.lower().startswith(_ELSEWHERE)
        file = os.sep in text and key not in _ORIGIN and names_a_file(text)
        if kernel or other or file:
            what = "a kernel" if kernel else "another model" if other else "a file elsewhere"
            raise ValueError(
                _told(f"its configuration's {plain(path)} asks for {what}{_named(text)}")
            )


def _told(what: str) -> str:
    return f"{what}, which is not given: nothing beside its own file is read or run; {_REMEDY}"


def _doors(where: str | None, refuse: Callable[..., None]) -> Iterator[_Door]:
    """Where transformers goes out, with what looks at who goes there."""
    import transformers.dynamic_module_utils as dynamic
    import transformers.modeling_utils as modeling
    import transformers.utils.hub as hub

    def look_up(place: Any = None, *arguments: Any, **options: Any) -> None:
        place = options.get("path_or_repo_id", options.get("pretrained_model_name_or_path", place))
        names = options.get("filenames", arguments[0] if arguments else [])
        chosen = options.get("transformers_explicit_filename")
        if chosen is not None:  # another file than the one that is read and compared
            refuse("weights of a name of its own", str(chosen))
        if place is not None and not _same(place, where):
            refuse("another folder or repository", str(place))
        for name in names if isinstance(names, list | tuple) else [names]:
            if type(name) is str and (Path(name).is_absolute() or ".." in Path(name).parts):
                refuse("a file outside of its folder", name)

    def of(what: str) -> Callable[..., None]:
        return lambda *arguments, **_: refuse(what, str(arguments[0]) if arguments else None)

    def module(name: Any, location: Any = None, *_: Any, **__: Any) -> None:
        """Installed libraries import parts of themselves by path."""
        installed = map(Path, (sys.prefix, sys.base_prefix, Path(modeling.__file__).parents[1]))
        path = Path(str(location)).resolve()
        if location is not None and not any(place.resolve() in path.parents for place in installed):
            refuse("code of its own", str(name))

    yield hub, "cached_files", look_up
    yield modeling, "_get_resolved_checkpoint_files", look_up
    yield dynamic, "get_class_in_module", of("code of its own")
    yield dynamic, "get_cached_module_file", of("code of its own")
    yield importlib.util, "spec_from_file_location", module
    yield modeling, "get_kernel", of("a kernel")


def _doors_of_others(where: str | None, refuse: Callable[..., None]) -> Iterator[_Door]:
    """Where the libraries go out that transformers builds models with."""

    def load(file: Any = None, *_: Any, **options: Any) -> None:
        named = isinstance(file, str | os.PathLike)
        own = where is not None and (not named or _inside(file, where))
        if not own or options.get("weights_only") is not True:
            refuse("weights of another place", str(file) if named else None)

    def network(*_: Any, **__: Any) -> None:
        refuse("something on the network")

    yield torch, "load", load
    yield logging.Logger, "handle", _in_plain_text
    if where is None or Path(where).is_dir():
        yield urllib.request.OpenerDirector, "open", network
        yield socket, "getaddrinfo", network
        yield socket.socket, "connect", network
        yield socket.socket, "connect_ex", network


@contextmanager
def _guarded(owner: Any, name: str, check: Callable[..., None], thread: int) -> Iterator[None]:
    """Put a check before a function for as long as this lasts, in one thread alone."""
    function = getattr(owner, name, None)
    if function is None:  # this version of transformers has no such door
        yield
        return
    own = name in vars(owner)

    def guard(*arguments: Any, **options: Any) -> Any:
        if threading.get_ident() == thread:
            check(*arguments, **options)
        return function(*arguments, **options)

    setattr(owner, name, guard)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, function)
        else:
            delattr(owner, name)


def _in_plain_text(logger: logging.Logger, record: logging.LogRecord) -> None:
    """Libraries log what a file says, word for word."""
    text = str(record.msg)
    with suppress(Exception):  # of arguments that do not fit, as logging itself lets pass
        text = record.getMessage()
    lines = text.splitlines()[:_LINES]
    record.msg, record.args = "\n".join(plain(line, 1000) for line in lines), None


def _inside(file: str | os.PathLike[str], where: str) -> bool:
    """Whether a file stands in a folder; where the hub keeps what it gives is not known."""
    return not Path(where).is_dir() or Path(file).parent.resolve() == Path(where).resolve()


def _same(place: Any, where: str | None) -> bool:
    if where is None:
        return False
    if Path(where).is_dir():
        return Path(str(place)).resolve() == Path(where).resolve()
    return str(place) == where


def entries(settings: Any) -> Iterator[tuple[str, str, Any]]:
    """Every entry of nested data, with its path and its own key.

    Raises:
        ValueError: If there are more than any model's.
    """
    left: list[tuple[str, str, Any]] = [("", "", settings)]
    room = MAX_ENTRIES
    while left:
        path, key, value = left.pop()
        room -= len(value) if isinstance(value, Mapping | list | tuple) else 0
        if room < 0:
            raise ValueError(f"it has more than {MAX_ENTRIES:,} settings, as no model has")
        if isinstance(value, Mapping):
            start = f"{path}." if path else ""
            left += [(f"{start}{plain(name, 60)}", str(name), item) for name, item in value.items()]
        elif isinstance(value, list | tuple):
            left += [(path, key, item) for item in value]
        else:
            yield path, key, value


def names_a_file(text: str, besides: Path | None = None) -> bool:
    """Whether text is the path of a file, a pipe or a device, and not of a folder.

    Args:
        text: What a file holds.
        besides: A folder whose files are let through.
    """
    if len(text) > _LONGEST_PATH or not os.path.exists(text) or os.path.isdir(text):
        return False
    return besides is None or besides.resolve() not in Path(text).resolve().parents


def _key_of(settings: Any, asked: Any) -> str:
    """The key that names what was asked for, where one does."""
    for path, _, value in entries(settings):
        if type(value) is str and value == asked:
            return f"its configuration's {plain(path)}"
    return "its configuration"


def _named(asked: Any) -> str:
    return f" ({plain(asked, 100)})" if asked else ""
