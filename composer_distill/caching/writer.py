"""Writing a cache: each process its own part, a shard at a time."""

import io
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from composer_distill.caching import index
from composer_distill.caching.extra import need
from composer_distill.caching.manifest import (
    MANIFEST,
    Manifest,
    Recipe,
    check_same,
    read_manifest,
    summed,
    to_json,
    write_atomically,
)
from composer_distill.caching.packing import Columns
from composer_distill.caching.shards import KEYS, read_facts, read_keys, write_shard
from composer_distill.weights.json_files import read_json

INDEX = "index.npy"
SHARD_BYTES = 1 << 25


def start(folder: Path, recipe: Recipe) -> Recipe:
    """Begin a cache, or go on with one that was begun alike; one process does it for all.

    Where nothing was answered yet, what was begun is forgotten.

    Returns:
        What is kept, by the names of those that began it.

    Raises:
        FileExistsError: If the folder holds something else.
        ValueError: If it holds a cache of other answers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / MANIFEST
    if path.exists():
        kept = read_manifest(path, str(folder)).recipe
        if read_facts(folder) or _is_written(folder):
            check_same(kept, recipe, str(folder))
            recipe = kept
    elif any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileExistsError(
            f"{folder} holds files and no cache, so that nothing was written to it. Give an empty "
            "folder, or one that does not exist."
        )
    write_atomically(path, to_json(Manifest(recipe)).encode())
    return recipe


def _is_written(folder: Path) -> bool:
    """Return whether a process writes a folder at this moment."""
    for path in folder.glob(".part-*.lock"):
        try:
            FileLock(path).acquire(timeout=0).lock.release()
        except Timeout:
            return True
    return False


class PartWriter:
    """Writes what one process answers; shards that are there are kept, whoever wrote them.

    Args:
        folder: The cache, already begun.
        part: The number of the process.
        shard_bytes: How much is gathered before it is written.

    Attributes:
        positions: How many positions this writer took.
        bytes: The size of what it took.

    Raises:
        RuntimeError: If another process writes this part.
    """

    def __init__(self, folder: Path, part: int, shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self._part = folder / f"part-{part:05}"
        self._limit = shard_bytes
        self._part.mkdir(exist_ok=True)
        self._lock = FileLock(folder / f".part-{part:05}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RuntimeError(
                f"{folder}: another process writes this cache. Wait for it to end, or give another "
                "folder."
            ) from error
        self._known = {key.tobytes() for keys in _all_keys(folder) for key in keys}
        self.positions, self.bytes = 0, 0  # that this writer took
        self._next = 1 + max((_number(path) for path in self._part.glob("shard-*")), default=-1)
        self._forget()

    @property
    def known(self) -> int:
        """How many samples are there."""
        return len(self._known)

    def lacks(self, keys: np.ndarray) -> np.ndarray:
        """Return for each key whether its sample is not there yet."""
        return np.array([key.tobytes() not in self._known for key in keys], bool)

    def add(
        self,
        key: np.ndarray,
        columns: Columns,
        positions: int,
        mass: float | None,
        facts: Mapping[str, Any],
    ) -> None:
        """Take a sample's answer, and write a shard where enough is gathered.

        Args:
            key: The sample's key.
            columns: What is kept of the answer.
            positions: How many positions it has.
            mass: The probability, summed over positions, of what is kept; None where all is.
            facts: What must be alike for all answers of a cache.

        Raises:
            OSError: If it can't be written, such as on a full disk.
        """
        if key.tobytes() in self._known:
            return
        if self._rows and dict(facts) != self._facts:
            self.flush()
        self._facts = dict(facts)
        self._known.add(key.tobytes())
        self._keys.append(key)
        self._rows.append(columns)
        self._positions += positions
        self._mass = None if mass is None else self._mass_so_far + mass
        self._mass_so_far = self._mass or 0.0
        size = sum(map(len, columns.values()))
        self._bytes += size
        self.positions, self.bytes = self.positions + positions, self.bytes + size
        if self._bytes >= self._limit:
            self.flush()

    def flush(self) -> None:
        """Write what is gathered, as a shard."""
        if not self._rows:
            return
        facts = {
            **self._facts,
            "samples": len(self._rows),
            "positions": self._positions,
            "mass": self._mass,
        }
        try:
            target = self._part / f"shard-{self._next:05}"
            write_shard(target, self._rows, np.stack(self._keys), facts)
        except OSError as error:
            kept = self.known - len(self._rows)
            raise OSError(
                error.errno,
                f"{self._folder} can't be written to ({error.strerror or error}). {kept} samples "
                "are safe in it: free some space and run the same again, to go on from there",
            ) from error
        self._next += 1
        self._forget()

    def close(self) -> None:
        """Let others write this part."""
        self._lock.release()

    def _forget(self) -> None:
        self._keys: list[np.ndarray] = []
        self._rows: list[Columns] = []
        self._facts: dict[str, Any] = {}
        self._positions, self._bytes = 0, 0
        self._mass: float | None = None
        self._mass_so_far = 0.0


def finish(folder: Path, recipe: Recipe) -> Manifest:
    """Mark a cache finished, once all of its parts are; one process does it for all."""
    facts = read_facts(folder)
    manifest = summed(recipe, facts, str(folder))
    stream = io.BytesIO()
    np.save(stream, build_index(folder))
    write_atomically(folder / INDEX, stream.getvalue())
    digest = need("xxhash").xxh3_128_hexdigest(stream.getvalue())
    manifest = replace(manifest, finished=True, index=digest, versions=_versions())
    write_atomically(folder / MANIFEST, to_json(manifest).encode())
    write_atomically(folder / "index.json", _mds_index(folder, facts))
    return manifest


def build_index(folder: Path) -> np.ndarray:
    """Return the index of the shards that are in a folder."""
    keys = _all_keys(folder)
    if not keys:
        return np.empty((3, 0), np.uint64)
    places = [index.place(shard, len(each)) for shard, each in enumerate(keys)]
    return index.build(np.concatenate(keys), np.concatenate(places))


def _all_keys(folder: Path) -> list[np.ndarray]:
    """Return the keys of each shard, in the order of their paths."""
    return [read_keys((folder / path).parent / KEYS) for path in read_facts(folder)]


def _mds_index(folder: Path, facts: Mapping[str, Any]) -> bytes:
    """Return the index with which streaming reads all shards as one data set."""
    shards = []
    for path in facts:
        parent = Path(path).parent
        (shard,) = read_json(folder / parent / "index.json")["shards"]
        shard["raw_data"]["basename"] = path
        shards.append(shard)
    return json.dumps({"version": 2, "shards": shards}).encode()


def _number(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _versions() -> dict[str, str]:
    found = {"torch": torch.__version__, "streaming": need("streaming").__version__}
    with suppress(ModuleNotFoundError):  # used from a checkout that is not installed
        found["composer-distill"] = version("composer-distill")
    return found
