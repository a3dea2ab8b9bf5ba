"""Shards: MDS files of some thousand samples, written whole or not at all, and read by mapping."""

import json
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from composer_distill.caching.extra import need
from composer_distill.caching.forms import check_forms
from composer_distill.caching.packing import Columns
from composer_distill.weights.json_files import read_json
from composer_distill.weights.pickles import reason

DATA, KEYS, FACTS = "shard.00000.mds", "keys.npy", "facts.json"
_TOLD = (
    "classes", "dtype", "by_position", "fields", "samples", "positions", "mass", "bytes",
    "checksum",
)  # fmt: skip
_PIECE = 1 << 20
_REMEDY = "Delete the folder of that shard, and run the same cache_teacher again."


def write_shard(
    folder: Path, rows: Sequence[Columns], keys: np.ndarray, facts: Mapping[str, Any]
) -> None:
    """Write a shard as a folder of its own, which is there only once it is whole.

    Args:
        folder: Where; it must not exist.
        rows: The samples.
        keys: Their keys, ``(N, 2)``.
        facts: What is noted beside them.
    """
    draft = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        columns = dict.fromkeys(("key", *rows[0]), "bytes")
        writer = need("streaming").MDSWriter(out=str(draft), columns=columns, size_limit=None)
        for key, row in zip(keys, rows, strict=True):
            writer.write({"key": key.tobytes(), **row})
        writer.finish()
        np.save(draft / KEYS, keys)
        data = draft / DATA
        noted = {**facts, "bytes": data.stat().st_size, "checksum": checksum(data)}
        (draft / FACTS).write_text(json.dumps(noted), encoding="utf-8")
        _to_disk(draft)
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def checksum(path: Path) -> str:
    """Return what tells a file from one that differs in a bit."""
    digest = need("xxhash").xxh3_128()
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def read_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what is noted beside each shard of a cache, by the path of its data in the folder."""
    paths = sorted(folder.glob(f"part-*/shard-*/{FACTS}"))
    return {
        (path.parent / DATA).relative_to(folder).as_posix(): _facts(folder, path) for path in paths
    }


def _facts(folder: Path, path: Path) -> dict[str, Any]:
    try:
        facts = read_json(path) if path.is_file() else {}
        check_forms(facts)
        return {name: facts[name] for name in _TOLD} | {"lacked": facts.get("lacked", ())}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: {path.relative_to(folder)} tells nothing of its shard ({reason(error)}). "
            f"{_REMEDY}"
        ) from error


def read_keys(path: Path) -> np.ndarray:
    """Return the keys of a shard, ``(N, 2)``, mapped.

    Raises:
        ValueError: If it holds anything else.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file. {_REMEDY}")
    try:
        keys = np.load(path, mmap_mode="r")
    except (EOFError, OverflowError, ValueError) as error:
        raise ValueError(f"{path} holds no keys ({reason(error)}). {_REMEDY}") from error
    if getattr(keys, "ndim", 0) != 2 or keys.shape[1] != 2 or keys.dtype != np.uint64:
        raise ValueError(f"{path} holds no keys. {_REMEDY}")
    return keys


class Shard:
    """The samples of one MDS file, mapped into memory and not read until they are asked for.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        count = int.from_bytes(self._map[:4], "little")
        self._offsets = np.frombuffer(self._map[4 : 8 + 4 * count], np.uint32)
        config = self._map[8 + 4 * count : int(self._offsets[0])]
        self._names: list[str] = json.loads(config)["column_names"]

    def row(self, index: int) -> dict[str, bytes]:
        """Return the columns of a sample."""
        start, stop = int(self._offsets[index]), int(self._offsets[index + 1])
        data = self._map[start:stop]
        head = 4 * len(self._names)
        ends = np.frombuffer(data[:head], np.uint32).cumsum() + head
        starts = [head, *ends[:-1].tolist()]
        pairs = zip(self._names, starts, ends.tolist(), strict=True)
        return {name: data[begin:end] for name, begin, end in pairs}

    def forget(self) -> None:
        """Give memory back that reading took: what is asked for again is read again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
