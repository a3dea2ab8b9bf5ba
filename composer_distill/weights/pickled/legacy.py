"""Files of torch.save before it wrote zip archives: five pickles, and the bytes behind them."""

from pathlib import Path
from typing import IO, Any

import torch

from composer_distill.weights.pickled import opcodes, tensors
from composer_distill.weights.pickled.archive import read_into, room_for
from composer_distill.weights.pickled.reach import Broken

_MAGIC = 0x1950A86A20F9469CFC6C
_VERSION = 1001


def read_legacy(file: Path) -> Any:
    """Read a file of the old format.

    Raises:
        ValueError: If it asks for more than data, or is broken.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        storages = _Storages(size)
        if opcodes.read(stream, size, tensors.find) != _MAGIC:
            raise Broken("it does not begin as torch.save's files do")
        if opcodes.read(stream, size, tensors.find) != _VERSION:
            raise Broken("a version of the format that is not known")
        opcodes.read(stream, size, tensors.find)  # facts about the machine
        found = opcodes.read(stream, size, tensors.find, storages)
        storages.fill(stream, opcodes.read(stream, size, tensors.find))
    return found


class _Storages:
    """Room for what the pickle asks for, filled when the bytes behind it come."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._room: dict[str, tuple[torch.Tensor, int]] = {}

    def __call__(self, asked: Any) -> tensors.Stored:
        kind, key, count = tensors.storage_asked(asked, 6)
        width = (kind.dtype or torch.uint8).itemsize
        if key not in self._room:
            self._left -= count * width
            if self._left < 0:
                raise Broken("storages of more bytes than the file has")
            self._room[key] = room_for(count * width), count
        storage = self._room[key][0].untyped_storage()
        return tensors.Stored(_part(storage, asked[5], width), kind)

    def fill(self, stream: IO[bytes], keys: Any) -> None:
        """Read the bytes of each storage, in the order of the keys.

        Raises:
            Broken: If one is missing, or has another length than was said.
        """
        if type(keys) is not list or not all(type(key) is str for key in keys):
            raise Broken("no list of storages")
        if sorted(keys) != sorted(self._room):
            raise Broken("storages without bytes, or bytes without a storage")
        for key in keys:
            room, count = self._room[key]
            if int.from_bytes(stream.read(8), "little") != count:
                raise Broken("a storage of another length than was said")
            read_into(stream, room)


def _part(storage: torch.UntypedStorage, view: Any, width: int) -> torch.UntypedStorage:
    """The part of a storage that another one was a view of."""
    if view is None:
        return storage
    if type(view) is not tuple or len(view) != 3 or not all(type(n) is int for n in view[1:]):
        raise Broken("a view of a storage that is none")
    start, stop = view[1] * width, (view[1] + view[2]) * width
    if not 0 <= start <= stop <= storage.nbytes():
        raise Broken("a view of a storage that goes beyond it")
    return storage[start:stop]
