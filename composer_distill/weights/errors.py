"""What leaves a reader when it fails: who read what, what is wrong, and what to do about it."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from composer_distill.weights.pickles import reason
from composer_distill.weights.wording import plain

_LONGEST = 4000
_ROOM = (
    "free some room, or name a folder on another disk in COMPOSER_DISTILL_CACHE (downloads) and "
    "TMPDIR (what is unpacked)"
)
_REMEDIES = {
    errno.EACCES: "let this user read it",
    errno.EPERM: "let this user read it",
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
}
# What a library in Rust raises where it gives up, which is no Exception
_RUST = "PanicException"


class MissingPackage(ImportError, ValueError):
    """What is read needs a package that is not installed here, or not in this version."""


@contextmanager
def named_errors(name: str, source: str | Path) -> Iterator[None]:
    """Say in every error which teacher and which source it is about, and what to do.

    What leaves is a ValueError or an OSError, of the kind that it was; where a package is missing,
    one that is an ImportError too.

    Args:
        name: What errors call the teacher.
        source: What is read; secrets in a URI are not shown.
    """
    where = plain(f"{name}: {source}", _LONGEST)
    try:
        with clean_errors():
            yield
    except ImportError as error:
        raise MissingPackage(
            f"{without_secrets(where)}: {with_remedy(str(error), 'install what is missing')}"
        ) from error
    except OSError as error:
        raise _named(error, plain(f"{name}: cannot read {source}: ", _LONGEST)) from error
    except ValueError as error:
        raise ValueError(f"{without_secrets(where)}: {with_remedy(str(error))}") from error


@contextmanager
def clean_errors() -> Iterator[None]:
    """Turn whatever a broken file leads to into a ValueError that says what it was."""
    try:
        yield
    except (ImportError, OSError, ValueError):
        raise
    except BaseException as error:  # A file that somebody made up can lead anywhere.
        if not isinstance(error, Exception) and type(error).__name__ != _RUST:
            raise
        raise ValueError(f"it cannot be read ({reason(error)})") from error


def _named(error: OSError, start: str) -> OSError:
    what = error.strerror.lower() if error.strerror else str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check the path, and the disk that it lies on")
    kind = type(error) if type(error).__module__ == "builtins" else OSError
    named = kind(without_secrets(start) + with_remedy(what, remedy))
    named.errno = error.errno
    return named


def with_remedy(text: str, remedy: str = "save or download it again, or name another") -> str:
    """A message that can be shown, with a remedy where it has none.

    Ours stand behind a stop or a semicolon.

    Args:
        text: The message.
        remedy: What to do.

    Example:
        >>> with_remedy("it is damaged")
        'it is damaged; save or download it again, or name another'
    """
    told = any(mark in text for mark in ("; ", ". ", "\n"))
    lines = (text if told else f"{text}; {remedy}").splitlines()
    return without_secrets("\n".join(plain(line, _LONGEST) for line in lines))[: 2 * _LONGEST]


def without_secrets(text: object) -> str:
    """Text without what URIs in it hold before an ``@``, or behind a ``?`` where a name has one.

    Example:
        >>> without_secrets("no object at s3://key:secret@bucket/a.pt?X-Amz-Signature=1")
        'no object at s3://***@bucket/a.pt?***'
    """
    hidden = re.sub(r"://(?:[^\s/@]+|[^\s/:@]*:[^\s@]*)@", "://***@", str(text))
    return re.sub(r"\?[\w.-]+=\S*", "?***", hidden)
