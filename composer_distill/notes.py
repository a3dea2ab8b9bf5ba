"""A note on an error that a function of the user raised: which argument it was."""

from collections.abc import Iterator
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


def add_note(error: Exception, note: str) -> None:
    """Add a note to an error; before Python 3.11 errors take none."""
    if hasattr(error, "add_note"):
        error.add_note(note)  # pyright: ignore[reportAttributeAccessIssue]
