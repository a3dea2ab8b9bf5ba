"""A note on an error that a function of the user raised: which argument it was."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def noted(argument: str, function: Any, with_what: str = "") -> Iterator[None]:
    """Name the argument whose function failed; the error's kind and text stay as they are.

    Composer must still know an out-of-memory error for what it is.

    Args:
        argument: The argument's name.
        function: What was passed for it.
        with_what: What it was called with, in words.
    """
    try:
        yield
    except Exception as error:
        name = getattr(function, "__qualname__", None) or type(function).__name__
        add_note(error, f"This was raised by {argument} ({name}){with_what}.")
        raise


@contextmanager
def reworded(wording: Callable[[str], str] | None) -> Iterator[None]:
    """Say an error about arguments in the words of whoever gave them; its kind stays as it is.

    What models, losses and functions of others raise stays in their words.

    Args:
        wording: Turns a text that speaks of Python into theirs; None where they speak Python.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        told = error.args and isinstance(error.args[0], str)
        if wording is not None and told and _raised_here(error):
            error.args = (wording(error.args[0]), *error.args[1:])
        raise


def _raised_here(error: Exception) -> bool:
    """Tell whether code of this package raised an error."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").partition(".")[0] == __package__


def add_note(error: Exception, note: str) -> None:
    """Add a note to an error; before Python 3.11 errors take none."""
    if hasattr(error, "add_note"):
        error.add_note(note)  # pyright: ignore[reportAttributeAccessIssue]
