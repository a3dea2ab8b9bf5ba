"""Zip archives of torch.save, read record by record."""

import mmap
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from composer_distill.weights.pickled import opcodes, tensors
from composer_distill.weights.pickled.reach import Broken
from composer_distill.weights.wording import plain

MAX_PICKLE = 1 << 30
_LOCAL_HEADER = 30
_LARGE = 1 << 20  # what malloc may keep for itself when it is freed

# What Python's zipfile raises on broken archives, in its many ways.
BROKEN_ZIP = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    EOFError,
    OSError,
    UnicodeDecodeError,
    struct.error,
)


def check_records(archive: zipfile.ZipFile) -> None:
    """Refuse records that torch.save cannot have written, or that are damaged.

    PyTorch maps an archive's records without looking at their checksums, and would take the
    bytes of a compressed or cut record for weights.

    Raises:
        ValueError: If a record is compressed, overlaps another, or does not match its checksum.
    """
    records = archive.infolist()
    names = [Path(record.filename).name for record in records]
    if "constants.pkl" in names:
        raise ValueError("it is a TorchScript program, not a checkpoint; save its state_dict()")
    if names.count("data.pkl") != 1 or len({each.filename for each in records}) < len(records):
        listed = ", ".join(repr(plain(each.filename)) for each in records[:3]) or "nothing"
        raise ValueError(f"it is a zip archive, but not one that torch.save wrote (holds {listed})")
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


def read_archive(file: Path | IO[bytes], *, mapped: bool) -> Any:
    """Read what ``torch.save`` put into an archive.

    Args:
        file: The archive.
        mapped: Whether its tensors are views of the mapped file, which must be a path then.

    Raises:
        ValueError: If it asks for more than data, or is broken.
    """
    with zipfile.ZipFile(file) as archive:
        stream = cast(IO[bytes], archive.fp)
        records = _Records.of(archive, stream)
        if mapped:
            records.whole = _mapped(Path(str(file)), records.size)
        return records.read()


@dataclass
class _Records:
    """Where each record begins and how long it is, and the storages that were made of them."""

    stream: IO[bytes]
    places: dict[str, tuple[int, int]]
    folder: str
    size: int
    whole: torch.UntypedStorage | None
    made: dict[str, torch.UntypedStorage]
    swapped: bool = False

    @classmethod
    def of(cls, archive: zipfile.ZipFile, stream: IO[bytes]) -> "_Records":
        size = stream.seek(0, 2)
        places = {each.filename: _place(stream, each, size) for each in archive.infolist()}
        pickle = next(name for name in places if Path(name).name == "data.pkl")
        return cls(stream, places, pickle.removesuffix("data.pkl"), size, None, {})

    def read(self) -> Any:
        order = self._bytes("byteorder") if self.folder + "byteorder" in self.places else b"little"
        self.swapped = order == b"big"
        return opcodes.read_bytes(self._bytes("data.pkl"), tensors.find, self._storage)

    def _bytes(self, name: str) -> bytes:
        place, size = self.places[self.folder + name]
        if size > MAX_PICKLE:
            raise Broken(f"a {name} of more than {MAX_PICKLE:,} bytes")
        self.stream.seek(place)
        return self.stream.read(size)

    def _storage(self, asked: Any) -> tensors.Stored:
        kind, key, count = tensors.storage_asked(asked, 5)
        place, size = self.places.get(f"{self.folder}data/{key}", (0, 0))
        wanted = count * (kind.dtype or torch.uint8).itemsize
        if wanted > size:
            raise Broken("a storage of more bytes than its record has")
        if key not in self.made:
            self.made[key] = self._make(place, size, kind.dtype or torch.uint8)
        return tensors.Stored(self.made[key], kind)

    def _make(self, place: int, size: int, dtype: torch.dtype) -> torch.UntypedStorage:
        if self.whole is not None and place % dtype.itemsize == 0 and not self.swapped:
            return self.whole[place : place + size]
        room = room_for(size)
        self.stream.seek(place)
        read_into(self.stream, room)
        storage = room.untyped_storage()
        if self.swapped:
            storage.byteswap(dtype)
        return storage


def _mapped(file: Path, size: int) -> torch.UntypedStorage:
    """The whole file as memory: what is written there never reaches the file."""
    return cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(file), False, size))


def room_for(size: int) -> torch.Tensor:
    """So many bytes of memory, which go back to the system as soon as nothing holds them."""
    if size < _LARGE:
        return torch.empty(size, dtype=torch.uint8)
    return torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)


def read_into(stream: IO[bytes], room: torch.Tensor) -> None:
    """Fill memory from a stream.

    Raises:
        Broken: If the stream ends before.
    """
    left = memoryview(room.numpy())  # pyright: ignore[reportArgumentType]
    while left:
        count = stream.readinto(left)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise Broken("it is truncated")
        left = left[count:]


def _place(stream: IO[bytes], record: zipfile.ZipInfo, size: int) -> tuple[int, int]:
    """Where a record's bytes begin, behind a header whose length it tells itself."""
    stream.seek(record.header_offset)
    header = stream.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or not header.startswith(b"PK\x03\x04"):
        raise Broken("a record without a header")
    place = record.header_offset + _LOCAL_HEADER + sum(struct.unpack_from("<HH", header, 26))
    if place + record.file_size > size:
        raise Broken("a record that goes beyond the file")
    return place, record.file_size
