"""Zstandard's frames, looked at before a byte is unpacked: a few can say that they are gigabytes.

The format is that of RFC 8878.
"""

from composer_distill.caching.extra import need

# What may be unpacked of a column in any case, and of how much for each of its bytes
SMALL = 1 << 26
MAX_RATIO = 100

_MAGIC = b"\x28\xb5\x2f\xfd"
_KEY_BYTES = (0, 1, 2, 4)  # of the number of a dictionary
_SIZE_BYTES = (0, 2, 4, 8)  # of the size of what is packed
_BLOCK_HEADER = 3
_REPEATED = 1  # the kind of a block that is one byte, again and again


def decompress(data: bytes, size: int) -> bytes:
    """Unpack one frame of so many bytes.

    Args:
        data: The frame.
        size: How many bytes are in it.

    Raises:
        ValueError: If it is none, of another size, or out of proportion.

    Example:
        >>> import zstd
        >>> len(decompress(zstd.compress(bytes(1000)), 1000))
        1000
        >>> decompress(zstd.compress(bytes(1000)), 10)
        Traceback (most recent call last):
        ...
        ValueError: 1,000 bytes are packed where 10 are needed
    """
    told = packed_size(data)
    if told != size:
        raise ValueError(f"{told:,} bytes are packed where {size:,} are needed")
    if size > max(SMALL, MAX_RATIO * len(data)):
        raise ValueError(f"{size:,} bytes are packed into {len(data):,}, as no answer is")
    try:
        return need("zstd").decompress(data)
    except need("zstd").Error as error:
        raise ValueError(f"what is packed is damaged ({error})") from error


def packed_size(data: bytes) -> int:
    """Return how many bytes a frame says that it holds.

    Raises:
        ValueError: If it is no single frame that tells its size.
    """
    if data[:4] != _MAGIC or len(data) < 6:
        raise ValueError(f"{len(data):,} bytes are there that are packed in no known way")
    flags = data[4]
    single = flags >> 5 & 1
    at = 5 + (not single) + _KEY_BYTES[flags & 3]
    width = _SIZE_BYTES[flags >> 6] or single
    told = int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0)
    if not width or _end(data, at + width) + 4 * (flags >> 2 & 1) != len(data):
        raise ValueError(f"{len(data):,} bytes are there that are no one packed column")
    return told


def _end(data: bytes, at: int) -> int:
    """Where a frame's last block ends."""
    while True:
        header = int.from_bytes(data[at : at + _BLOCK_HEADER], "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        at += _BLOCK_HEADER + (1 if kind == _REPEATED else size)
        if last or at >= len(data):
            return at
