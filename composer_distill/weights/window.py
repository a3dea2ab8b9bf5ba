"""A part of a file, as a file."""

import io
import os
from typing import Any, BinaryIO


class Window(io.RawIOBase):
    """Reads ``length`` bytes of a file from ``offset`` on, and copies none of them before.

    Args:
        file: The file, which stays open as long as the window is used.
        offset: Where the window begins.
        length: How long it is.

    Example:
        >>> Window(io.BytesIO(b"abcdef"), 2, 3).read()
        b'cde'
    """

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length = file, offset, length
        self._place = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another place."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        if start + offset < 0:
            raise OSError("a place before the beginning")
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        """Read up to ``size`` bytes, or all that are left, without the copy that io would make."""
        left = max(self._length - self._place, 0)
        self._file.seek(self._offset + self._place)
        data = self._file.read(left if size is None or size < 0 else min(size, left))
        self._place += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the window goes."""
        view = memoryview(buffer)[: max(self._length - self._place, 0)]
        self._file.seek(self._offset + self._place)
        count = self._file.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        self._place += count
        return count
