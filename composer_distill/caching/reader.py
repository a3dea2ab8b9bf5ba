"""Reading a cache: from a folder, or from an object store a shard at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from composer_distill.caching import index
from composer_distill.caching.manifest import MANIFEST, Manifest, read_manifest, summed
from composer_distill.caching.shards import Shard, checksum, read_facts
from composer_distill.caching.writer import INDEX, build_index
from composer_distill.weights.pickles import reason
from composer_distill.weights.remote import fetch
from composer_distill.weights.uris import Remote, parse_remote
from composer_distill.weights.wording import plain

_READ_AT_MOST = 1 << 26  # bytes, before what was mapped is given back


class Cache:
    """The answers in a folder, found by their keys.

    Args:
        folder: A path, or the URI of an object store, whose shards are downloaded as they are
            needed, once on each node.
        unfinished: Whether a cache that was not written to its end is read all the same.

    Raises:
        FileNotFoundError: If there is no cache, or a shard of it is missing.
        ValueError: If it is damaged, unfinished or of a newer version.
    """

    def __init__(self, folder: str | Path, *, unfinished: bool = False) -> None:
        self.folder = folder
        self._remote = parse_remote(folder)
        self._root = Path(folder).expanduser()
        try:
            self.manifest, self._index = self._open(unfinished)
        except (ImportError, OSError, ValueError):
            raise
        except Exception as error:  # what somebody made up can lead anywhere
            raise ValueError(
                f"{folder} cannot be read as a cache ({reason(error)}). {_MEND}"
            ) from error
        self._paths = list(self.manifest.shards)
        self._shards: dict[int, Shard] = {}
        self._read = 0

    def identity(self) -> str:
        """Return twelve letters that tell its answers from those of another cache."""
        facts = (self.manifest.recipe, self.manifest.index, sorted(self.manifest.shards.items()))
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Return the place of each key ``(B, 2)``; ``index.MISSING`` where there is no answer."""
        return index.find(self._index, keys)

    def rows(self, places: Sequence[int]) -> list[dict[str, bytes]]:
        """Return the columns of the samples at these places.

        Raises:
            FileNotFoundError: If a shard is missing.
            ValueError: If a shard is damaged.
        """
        found = []
        for place in places:
            number, row = index.shard_and_row(place)
            shard = self._shard(number)
            with self.told(place):
                found.append(shard.row(row))
            self._read += sum(map(len, found[-1].values()))
        if self._read > _READ_AT_MOST:
            self._read = 0
            for shard in self._shards.values():
                shard.forget()
        return found

    @contextmanager
    def told(self, place: int) -> Iterator[None]:
        """Say in an error in which shard a sample's answer is that cannot be read.

        Raises:
            ValueError: If anything is raised meanwhile.
        """
        number, row = index.shard_and_row(place)
        try:
            yield
        except ImportError:
            raise
        except Exception as error:  # what somebody made up can lead anywhere
            name = plain(self._paths[number])
            raise ValueError(
                f"{self.folder}: {name} is damaged: sample {row} of it cannot be "
                f"read ({reason(error)}). {_MEND}"
            ) from error

    def _open(self, unfinished: bool) -> tuple[Manifest, np.ndarray]:
        try:
            manifest = read_manifest(self._local(MANIFEST), str(self.folder))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"there is no cache of teachers' answers at {self.folder}: it has no {MANIFEST}. "
                "Write one with cache_teacher."
            ) from error
        if manifest.finished:
            return manifest, self._load_index(manifest)
        if not unfinished or self._remote:
            known = (
                0 if self._remote else sum(f["samples"] for f in read_facts(self._root).values())
            )
            raise ValueError(
                f"{self.folder} is an unfinished cache: {known} samples are in it, and training on "
                "them alone would leave the others out. Run the same cache_teacher again to finish "
                "it, or read what is there with CachedTeacher(..., unfinished=True)."
            )
        facts = read_facts(self._root)
        return summed(manifest.recipe, facts, str(self.folder)), build_index(self._root)

    def _load_index(self, manifest: Manifest) -> np.ndarray:
        for name, shard in {} if self._remote else manifest.shards.items():
            path = self._root / name
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise self._lost(name)
        path = self._local(INDEX)
        if not path.is_file() or checksum(path) != manifest.index:
            raise ValueError(f"{self.folder}: its {INDEX} is damaged. {_MEND}")
        try:
            found = np.load(path, mmap_mode="r")
        except (EOFError, OverflowError, ValueError) as error:
            raise ValueError(
                f"{self.folder}: its {INDEX} is none ({reason(error)}). {_MEND}"
            ) from error
        if getattr(found, "ndim", 0) != 2 or len(found) != 3 or found.dtype != np.uint64:
            raise ValueError(f"{self.folder}: its {INDEX} is of another form. {_MEND}")
        return found

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            if not 0 <= number < len(self._paths):
                raise ValueError(
                    f"{self.folder}: its {INDEX} names shard {number}, and it has "
                    f"{len(self._paths)}. {_MEND}"
                )
            name = self._paths[number]
            try:
                path = self._local(name)
                if not path.is_file():  # nor is a named pipe waited for
                    raise self._lost(name)
                same = checksum(path) == self.manifest.shards[name]["checksum"]
            except FileNotFoundError as error:
                raise self._lost(name) from error
            if not same:
                raise ValueError(
                    f"{self.folder}: {plain(name)} was changed since it was written: its "
                    f"checksum is another. {_MEND}"
                )
            with self.told(index.first_place(number)):
                self._shards[number] = Shard(path)
        return self._shards[number]

    def _lost(self, name: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.folder}: {plain(name)}, which its manifest names, is missing or cut "
            f"short. {_MEND}"
        )

    def _local(self, name: str) -> Path:
        remote = self._remote
        if remote is None:
            return self._root / name
        return fetch(Remote(remote.scheme, remote.bucket, f"{remote.name.rstrip('/')}/{name}"))


_MEND = (
    "Copy the cache again; or delete the folder of that shard, and run the same cache_teacher "
    "again, which answers what is missing."
)
