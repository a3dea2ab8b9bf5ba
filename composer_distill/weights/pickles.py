"""PyTorch's own files, read as data: whatever else is pickled into one is refused by name."""

import zipfile
from pathlib import Path
from typing import IO, Any

from torch.distributed.checkpoint import metadata

from composer_distill.weights.pickled.archive import (
    BROKEN_ZIP,
    MAX_PICKLE,
    check_records,
    read_archive,
)
from composer_distill.weights.pickled.legacy import read_legacy
from composer_distill.weights.pickled.machine import Refused
from composer_distill.weights.pickled.metadata import read_metadata as _read_metadata
from composer_distill.weights.pickled.reach import Broken
from composer_distill.weights.wording import plain


def read_pickled(file: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote: tensors and plain data, nothing else.

    torch.load is not asked: no name in the file is looked up, whatever it is.

    Args:
        file: A path, or an open zip archive.
        mmap: Map the tensors into memory instead of reading them (a path to a zip archive only).

    Raises:
        ValueError: If it asks for any other class or function, or is broken.
    """
    try:
        if isinstance(file, Path) and not is_archive(file):
            return read_legacy(file)
        return read_archive(file, mapped=mmap)
    except Refused:
        raise
    except Exception as error:  # A broken pickle can raise nearly anything.
        raise ValueError(
            f"it cannot be read as tensors and plain data ({reason(error)}): it is damaged, no "
            "checkpoint, or written in another pickle protocol than torch.save's. Have whoever "
            "trusts it save its state_dict() with torch.save"
        ) from None


def is_archive(file: Path) -> bool:
    """Whether a file begins as a zip archive does: torch too looks at nothing else."""
    with file.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def read_metadata(file: Path) -> metadata.Metadata:
    """Read the ``.metadata`` of a sharded checkpoint, of whose classes it may hold alone.

    Args:
        file: The path of the ``.metadata``.

    Raises:
        ValueError: If it asks for any other class or function, or is broken.
    """
    try:
        if file.stat().st_size > MAX_PICKLE:
            raise Broken(f"more than {MAX_PICKLE:,} bytes")
        return _read_metadata(file.read_bytes())
    except Refused:
        raise
    except Exception as error:  # A broken pickle can raise nearly anything.
        raise ValueError(f"its .metadata cannot be read ({reason(error)})") from error


def check_archive(file: Path | IO[bytes]) -> None:
    """Refuse a zip archive that ``torch.save`` cannot have written, or that is damaged.

    Args:
        file: The archive.

    Raises:
        ValueError: If a record is compressed, overlaps another, or does not match its checksum.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            check_records(archive)
    except BROKEN_ZIP as error:
        raise ValueError(f"it is a damaged zip archive ({reason(error)})") from error


def reason(error: BaseException) -> str:
    """The first line of an error, with its kind where that tells more.

    Example:
        >>> reason(EOFError())
        'EOFError'
    """
    lines = str(error).splitlines()
    text = plain(lines[0]) if lines else ""
    if isinstance(error, Broken):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
