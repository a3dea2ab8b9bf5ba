"""A file that is written while it is read: noticed, where it can be."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

Seen = dict[Path, os.stat_result]
_Result = TypeVar("_Result")


def seen(path: Path) -> Seen:
    """What the files of a source are like now: the file itself, or those of the folder."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file: file.stat() for file in files if file.is_file()}


def guarded(read: Callable[[str], _Result], before: Seen) -> Callable[[str], _Result]:
    """Look before each weight whether its file has been cut: to read a mapped one would kill us.

    Args:
        read: Gives the weight of a name.
        before: What the files were like when they were opened.
    """

    def read_if_whole(name: str) -> _Result:
        for file, then, now in _pairs(before):
            if now.st_ino == then.st_ino and now.st_size < then.st_size:
                raise ValueError(f"{file.name} was cut while it was read; {_REMEDY}")
        return read(name)

    return read_if_whole


def check_unchanged(before: Seen, *, mapped: bool) -> None:
    """Refuse weights of which some may be of the file before, and some of the file after.

    Args:
        before: What the files were like when they were opened.
        mapped: Whether they were open all the time, so that a new file in their place is no harm.

    Raises:
        ValueError: If a file was written meanwhile.
    """
    for file, then, now in _pairs(before):
        replaced = now.st_ino != then.st_ino
        written = (now.st_size, now.st_mtime_ns) != (then.st_size, then.st_mtime_ns)
        if (replaced and not mapped) or (written and not replaced):
            raise ValueError(f"{file.name} was written while it was read; {_REMEDY}")


_REMEDY = "load it again when whoever writes it has finished"


def _pairs(before: Seen) -> list[tuple[Path, os.stat_result, os.stat_result]]:
    """Each file then and now; one that was removed is still open, and whole."""
    pairs = []
    for file, then in before.items():
        with suppress(FileNotFoundError):
            pairs.append((file, then, os.stat(file)))
    return pairs
