"""Compressed checkpoints, unpacked into a folder that goes away again."""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from composer_distill.weights.safe_tensors import looks_like_safetensors

# What Composer compresses with, by the ending that it gives
PROGRAMS = {
    "bz2": "bzip2",
    "gz": "gzip",
    "lz4": "lz4",
    "lzma": "lzma",
    "lzo": "lzop",
    "xz": "xz",
    "zst": "zstd",
}
# How each compressed format that Composer writes begins, with the ending that Composer gives it.
MAGIC = {
    b"\x1f\x8b": "gz",
    b"BZh": "bz2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\xfd7zXZ\x00": "xz",
    b"\x5d\x00\x00": "lzma",
    b"\x28\xb5\x2f\xfd": "zst",
    b"\x89LZO": "lzo",
}
TAR_MEMBER = "composer_states.pt"

# Weights hardly compress; a file that grows more than this was made to fill a disk.
MAX_RATIO = 100
SMALL = 1 << 28


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give the file itself, or what is packed in it, in a temporary folder.

    Args:
        path: A file, packed or not: compressed, a tar of Composer's, or both.

    Raises:
        ValueError: If it is damaged, packed in an unknown way, or grows out of proportion.
    """
    if _compression(path) is None and not _is_tar(path):
        yield path
        return
    limit = max(SMALL, MAX_RATIO * path.stat().st_size)
    with tempfile.TemporaryDirectory(prefix="composer-distill-") as folder:
        file, packing = path, _compression(path)
        if packing is not None:
            file = Path(folder, "decompressed")
            _decompress(path, packing, file, limit)
        if _is_tar(file):
            file = _extract(file, Path(folder, "extracted"), limit)
        yield file


def _compression(path: Path) -> str | None:
    if looks_like_safetensors(path):  # whose first bytes are a number, and may be any of these
        return None
    with path.open("rb") as stream:
        head = stream.read(8)
    return next((ending for magic, ending in MAGIC.items() if head.startswith(magic)), None)


def _is_tar(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(262)[257:] == b"ustar"


def _decompress(path: Path, ending: str, target: Path, limit: int) -> None:
    """Run the program that Composer compressed with; Composer's own wrapper cannot be stopped."""
    program = PROGRAMS[ending]
    if shutil.which(program) is None:
        raise ValueError(f"it is compressed; install the program {program!r} to read it")
    command = [program, "-dc", str(path.resolve())]
    with (
        target.open("wb") as sink,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        try:
            _pour(process.stdout, sink, limit)
            _, complaint = process.communicate()
        except ValueError:
            process.kill()
            raise
    if process.returncode:
        said = complaint.decode(errors="replace").strip().splitlines()
        raise ValueError(f"it is damaged ({program}: {said[-1] if said else 'failed'})")


def _extract(path: Path, target: Path, limit: int) -> Path:
    """Take Composer's one file out of its tar; nothing else is unpacked, wherever it points."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if Path(member.name).name == TAR_MEMBER and member.isfile():
                    with target.open("wb") as sink:
                        _pour(archive.extractfile(member), sink, limit)
                    return target
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"it is a damaged tar archive ({error})") from error
    raise ValueError(f"it is a tar archive without the {TAR_MEMBER} that Composer puts there")


def _pour(stream: IO[bytes] | None, sink: IO[bytes], limit: int) -> None:
    poured = 0
    while stream is not None and (piece := stream.read(1 << 20)):
        poured += len(piece)
        if poured > limit:
            raise ValueError(
                f"it grows beyond {MAX_RATIO} times its size when unpacked, as no checkpoint does; "
                "unpack it yourself if it is what you expect"
            )
        sink.write(piece)
