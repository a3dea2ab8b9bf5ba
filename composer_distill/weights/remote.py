"""Object stores: one download on each node, into a cache that is checked before it is believed."""

import hashlib
import json
import logging
import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import tqdm
from composer.utils import ObjectStore, ObjectStoreTransientError, S3ObjectStore
from composer.utils.file_helpers import maybe_create_object_store_from_uri
from composer.utils.retrying import retry
from filelock import FileLock

from composer_distill.weights.sources import MAX_LINKS, SYMLINK, link_target

log = logging.getLogger(__name__)

SCHEMES = ("s3", "gs", "oci", "azure", "dbfs")
CACHE_VARIABLE = "COMPOSER_DISTILL_CACHE"
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+._-]+):/(?:/(?P<bucket>[^/]*)/?)?(?P<name>.*)", re.S
)
_WANTED = re.compile(r"\.metadata|.*\.(distcp|safetensors|bin|json)")
_STARTED = time.time()


class Remote(NamedTuple):
    """An object, or a folder of them, in a store."""

    scheme: str
    bucket: str
    name: str

    @property
    def uri(self) -> str:
        """How the object is called anywhere."""
        return f"{self.scheme}://{self.bucket}/{self.name}"


def parse_remote(source: str | Path) -> Remote | None:
    """Take a URI apart, or give None for a local path.

    Composer's own parser cuts names at ``#`` and ``?``, which objects may well hold.

    Args:
        source: What a user wrote.

    Raises:
        ValueError: If it is a URI of a kind that cannot be read.

    Example:
        >>> parse_remote("s3://bucket/run #1/latest-rank0.pt")
        Remote(scheme='s3', bucket='bucket', name='run #1/latest-rank0.pt')
        >>> parse_remote("./run #1/latest-rank0.pt") is None
        True
    """
    found = _URI.fullmatch(str(source).replace("AZURE_BLOBS://", "azure://"))
    if found is None or isinstance(source, Path):
        return None
    scheme = found["scheme"].lower()
    if found["bucket"] is None and scheme != "dbfs":
        return None
    if scheme not in SCHEMES:
        hint = {"file": "leave file:// out", "hf": "use Teacher.from_pretrained"}.get(scheme)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(
            f"{scheme}:// cannot be read; {hint or f'known are local paths and {known}'}"
        )
    if not found["name"] or (not found["bucket"] and scheme != "dbfs"):
        raise ValueError("the URI names no object; write scheme://bucket/name")
    return Remote(scheme, found["bucket"] or "", found["name"])


def fetch(remote: Remote) -> Path:
    """Download an object or folder, or find it in the cache.

    A lock lets one process of a node download while the others wait, without any process group:
    a Teacher may be made before one exists. A cached file is used again if it is still the object's
    current version and has the checksum that it came with. Stores that tell no version (all but
    S3) are asked for the file again by each run.

    Args:
        remote: What to fetch.

    Raises:
        FileNotFoundError: If the store has no such object.
    """
    uri = (
        f"dbfs:/{remote.name}" if remote.scheme == "dbfs" else f"{remote.scheme}://{remote.bucket}/"
    )
    store = maybe_create_object_store_from_uri(uri)
    if store is None:
        raise ValueError(f"{remote.uri} names no object store")
    with store:
        name = _follow(store, remote.name)
        names = [name] if _size(store, name) is not None else _folder(store, name)
        if not names:
            raise FileNotFoundError(f"there is no object and no folder at {remote.uri}")
        place = cache_folder() / hashlib.sha256(f"{remote.uri} {name}".encode()).hexdigest()[:24]
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            for each in names:
                _keep(store, each, _local(place, name, each))
    return _local(place, name, name) if names == [name] else place / "folder"


def cache_folder() -> Path:
    """Where downloads are kept: ``COMPOSER_DISTILL_CACHE``, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(base) / "composer-distill")


def _local(place: Path, name: str, each: str) -> Path:
    if each == name:
        return place / "object"
    inside = each[len(name.rstrip("/")) + 1 :]
    if ".." in Path(inside).parts:
        raise ValueError(f"the object {each} would be written outside of the cache")
    return place / "folder" / inside


def _size(store: ObjectStore, name: str) -> int | None:
    try:
        return store.get_object_size(name)
    except FileNotFoundError:
        return None


def _folder(store: ObjectStore, name: str) -> list[str]:
    """The objects of a folder that a checkpoint is made of."""
    prefix = name.rstrip("/") + "/"
    found = [each for each in store.list_objects(prefix) if each.startswith(prefix)]
    return [each for each in found if _WANTED.fullmatch(each[len(prefix) :])]


def _follow(store: ObjectStore, name: str) -> str:
    """Follow Composer's ``.symlink`` objects, also where the name lacks the ending."""
    for _ in range(MAX_LINKS):
        if not name.endswith(SYMLINK):
            if _size(store, name) is not None or _size(store, name + SYMLINK) is None:
                return name
            name += SYMLINK
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "link")
            if _size(store, name) is None:
                raise FileNotFoundError(f"there is no object {name}")
            _download(store, name, link, 0)
            name = link_target(link)
    raise ValueError(f"it leads through more than {MAX_LINKS} {SYMLINK} objects")


def _keep(store: ObjectStore, name: str, target: Path) -> None:
    record = target.with_name(target.name + ".record.json")
    size, version = _size(store, name), _version(store, name)
    if _is_fresh(target, record, size, version):
        log.info("%s is in the cache already", name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    record.unlink(missing_ok=True)
    _download(store, name, target, size or 0)
    if target.stat().st_size != size:
        target.unlink()
        raise ValueError(f"the download of {name} has not the {size} bytes that the store told")
    facts = {"size": size, "version": version, "sha256": _checksum(target), "time": time.time()}
    record.write_text(json.dumps(facts), encoding="utf-8")


def _is_fresh(target: Path, record: Path, size: int | None, version: str | None) -> bool:
    try:
        facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        current = facts["version"] == version if version else facts["time"] >= _STARTED
        same = current and facts["size"] == size == target.stat().st_size
        if same and facts["sha256"] != _checksum(target):
            log.warning("%s was changed after its download, and is downloaded again", target)
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same


def _version(store: ObjectStore, name: str) -> str | None:
    if not isinstance(store, S3ObjectStore):
        return None
    head = store.client.head_object(Bucket=store.bucket, Key=store.get_key(name))
    return f"{head['ETag']} {head['LastModified']}"


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@retry(ObjectStoreTransientError, num_attempts=5)
def _download(store: ObjectStore, name: str, target: Path, size: int) -> None:
    """Composer's own download, with a progress bar that knows how each store counts."""
    steps = isinstance(store, S3ObjectStore)  # S3 tells each step, the others the sum so far
    with tqdm.tqdm(
        desc=name[-40:], total=size or None, unit="B", unit_scale=True, disable=not size
    ) as bar:

        def show(done: int, _: int) -> None:
            bar.update(done if steps else done - bar.n)

        store.download_object(name, target, overwrite=True, callback=show)
