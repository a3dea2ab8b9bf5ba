"""PyTorch's own files, read as data: whatever else is pickled into one is refused by name."""

import datetime
import pickle
import re
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import IO, Any

import numpy as np
import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.torch_version import TorchVersion

_reconstruct = np.empty(0).__reduce__()[0]
_scalar = np.float64(0.0).__reduce__()[0]

# What real Composer checkpoints hold beside tensors and plain Python data: the version of torch,
# clock times, and NumPy's random state; and training scripts a scalar such as the best accuracy.
# NumPy 2 wrote another module name than NumPy 1.
SAFE_GLOBALS: list[Any] = [
    TorchVersion,
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdU"},
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_scalar, "numpy.core.multiarray.scalar"),
]

# What Python's zipfile raises on broken archives, in its many ways.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    EOFError,
    OSError,
    UnicodeDecodeError,
    struct.error,
)

# The classes of a sharded checkpoint's metadata.
METADATA_CLASSES: Mapping[str, object] = {
    f"{cls.__module__}.{cls.__qualname__}": cls
    for cls in (
        metadata.Metadata,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
        OrderedDict,
    )
} | {
    "torch.serialization._get_layout": torch.serialization._get_layout,
    "pathlib.PosixPath": PosixPath,
    "pathlib.PurePosixPath": PurePosixPath,
    "pathlib._local.PosixPath": PosixPath,
}


def read_pickled(file: Path | IO[bytes], *, mmap: bool = False) -> Any:
    """Read what ``torch.save`` wrote: tensors and plain data, nothing else.

    Args:
        file: A path, or an open file.
        mmap: Map the tensors into memory instead of reading them (a path to a zip archive only).

    Raises:
        ValueError: If it asks for any other class or function, or is broken.
    """
    known = set(torch.serialization.get_safe_globals())
    # Leaving the context would also take away what the caller had allowed before.
    added = [entry for entry in SAFE_GLOBALS if entry not in known]
    try:
        # torch warns of a pickle protocol that it then cannot read: the error says it better.
        with torch.serialization.safe_globals(added), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # A broken pickle can raise nearly anything.
        asked = re.search(r"(?:GLOBAL|function|object for .* but got) (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise ValueError(refusal(asked[1])) from error
        raise ValueError(
            "it cannot be read as tensors and plain data"
            + ("" if "weights_only" in str(error) else f" ({reason(error)})")
            + ": it is damaged, no checkpoint, or written in another pickle protocol than "
            "torch.save's. Have whoever trusts it save its state_dict() with torch.save"
        ) from None


def read_metadata(file: Path) -> metadata.Metadata:
    """Read the ``.metadata`` of a sharded checkpoint with an unpickler that knows its classes only.

    Args:
        file: The path of the ``.metadata``.

    Raises:
        ValueError: If it asks for any other class or function, or is broken.
    """
    with file.open("rb") as stream:
        try:
            found = _MetadataUnpickler(stream).load()
        except _Refused as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # A broken pickle can raise nearly anything.
            raise ValueError(f"its .metadata cannot be read ({reason(error)})") from error
    if not isinstance(found, metadata.Metadata):
        raise ValueError(f"its .metadata holds no checkpoint metadata but {type(found).__name__}")
    return found


def check_archive(file: Path | IO[bytes]) -> None:
    """Refuse a zip archive that ``torch.save`` cannot have written, or that is damaged.

    PyTorch maps an archive's records without looking at their checksums, and would take the
    bytes of a compressed or cut record for weights.

    Args:
        file: The archive.

    Raises:
        ValueError: If a record is compressed, overlaps another, or does not match its checksum.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_records(archive)
    except _BROKEN_ZIP as error:
        raise ValueError(f"it is a damaged zip archive ({reason(error)})") from error


def _check_records(archive: zipfile.ZipFile) -> None:
    records = archive.infolist()
    names = [Path(record.filename).name for record in records]
    if "constants.pkl" in names:
        raise ValueError("it is a TorchScript program, not a checkpoint; save its state_dict()")
    if "data.pkl" not in names:
        shown = ", ".join(repr(record.filename) for record in records[:3]) or "nothing"
        raise ValueError(f"it is a zip archive, but not one that torch.save wrote (holds {shown})")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("it is a zip archive with compressed records: torch.save writes none")
    file = archive.fp
    size = file.seek(0, 2) if file is not None else 0
    if sum(record.file_size for record in records) > size:
        raise ValueError("it is a zip archive whose records claim more bytes than the file has")
    for record in records:
        if record.CRC:  # torch can be told to write none
            _read_through(archive, record)


def _read_through(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    with archive.open(record) as stream:  # raises BadZipFile at the end when the checksum is wrong
        while stream.read(1 << 22):
            pass


class _Refused(Exception):
    """A pickle asked for something that is not data."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path in METADATA_CLASSES:
            return METADATA_CLASSES[path]
        dtype = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(dtype, torch.dtype | torch.layout):
            return dtype
        raise _Refused(refusal(path))


def refusal(asked: str) -> str:
    """Say that a file asks for more than data.

    Example:
        >>> refusal("posix.system").split(",")[0]
        'it asks for posix.system'
    """
    return (
        f"it asks for {asked}, which is no tensor or plain data, so it was not read further. "
        "Have whoever trusts it save its state_dict() alone"
    )


def reason(error: Exception) -> str:
    """The first line of an error, with its kind.

    Example:
        >>> reason(EOFError())
        'EOFError'
    """
    lines = str(error).splitlines()
    text = lines[0][:200] if lines else ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
