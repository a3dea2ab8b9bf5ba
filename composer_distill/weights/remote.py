"""Object stores: one download on each node, into a cache that is checked before it is believed."""

import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from composer.utils import ObjectStore
from filelock import FileLock

from composer_distill.weights.errors import without_secrets
from composer_distill.weights.sources import MAX_LINKS, SYMLINK, link_target
from composer_distill.weights.stores import TRIES, Head, download, head, names_under, open_store
from composer_distill.weights.uris import Remote

log = logging.getLogger(__name__)

CACHE_VARIABLE = "COMPOSER_DISTILL_CACHE"
_LONGEST_LINK = 4096
_WANTED = re.compile(r"\.metadata|.*\.(distcp|safetensors|bin|json)")
_STARTED = time.time()


def fetch(remote: Remote) -> Path:
    """Download an object or folder, or find it in the cache.

    A lock lets one process of a node download while the others wait, without any process group:
    a Teacher may be made before one exists. A cached file is used again if it is still the object's
    current version and has the checksum that it came with. Stores that tell no version (all but
    S3) are asked for the file again by each run.

    Args:
        remote: What to fetch.

    Raises:
        FileNotFoundError: If the store has no such bucket, object or folder.
        OSError: If the store refuses, gives no answer that can be used, or the disk is full.
    """
    with open_store(*remote) as store:
        name = _follow(store, remote.name)
        names = [name] if head(store, name) is not None else _folder(store, name)
        if not names:
            raise FileNotFoundError(
                f"there is no object and no folder at {without_secrets(remote.uri)}; check the name"
            )
        place = cache_folder() / hashlib.sha256(f"{remote.uri} {name}".encode()).hexdigest()[:24]
        _make_way(place, keep_folder=True)
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            _keep_all(store, {each: _local(place, name, each) for each in names}, place)
    return _local(place, name, name) if names == [name] else place / "folder"


def _keep_all(store: ObjectStore, targets: dict[str, Path], place: Path) -> None:
    """Keep objects, all as they were at one time."""
    for left in place.glob("part-*"):  # of a process that was stopped
        shutil.rmtree(left, ignore_errors=True)
    changed: list[str] = []
    for _ in range(TRIES):
        heads = {name: _keep(store, name, target, place) for name, target in targets.items()}
        changed = [
            name for name, told in heads.items() if told.version and head(store, name) != told
        ]
        if not changed:
            return
        shown = without_secrets(changed[0])
        log.warning("%s was replaced while it was downloaded: once more", shown)
    raise OSError(
        f"{without_secrets(changed[0])} was replaced each of the {TRIES} times that it was "
        "downloaded; wait until whoever writes it has finished"
    )


def cache_folder() -> Path:
    """Where downloads are kept: ``COMPOSER_DISTILL_CACHE``, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(base) / "composer-distill")


def _local(place: Path, name: str, each: str) -> Path:
    if each == name:
        return place / "object"
    inside = each[len(name.rstrip("/")) + 1 :]
    if inside.startswith("/") or ".." in Path(inside).parts:
        raise ValueError(f"the object {each} would be written outside of the cache; rename it")
    return place / "folder" / inside


def _folder(store: ObjectStore, name: str) -> list[str]:
    """The objects of a folder that a checkpoint is made of."""
    prefix = name.rstrip("/") + "/"
    found = [each for each in names_under(store, prefix) if each.startswith(prefix)]
    return [each for each in found if _WANTED.fullmatch(each[len(prefix) :])]


def _follow(store: ObjectStore, name: str) -> str:
    """Follow Composer's ``.symlink`` objects, also where the name lacks the ending."""
    for _ in range(MAX_LINKS):
        if not name.endswith(SYMLINK):
            if head(store, name) is not None or head(store, name + SYMLINK) is None:
                return name
            name += SYMLINK
        told = head(store, name)
        if told is None:
            raise FileNotFoundError(f"there is no object {name}; check the name")
        if told.size > _LONGEST_LINK:
            raise ValueError(f"{name} is no {SYMLINK} object: it should hold one path")
        with tempfile.TemporaryDirectory() as folder:
            link = Path(folder, "link")
            download(store, name, link, told.size)
            name = link_target(link)
    raise ValueError(f"it leads through more than {MAX_LINKS} {SYMLINK} objects")


def _keep(store: ObjectStore, name: str, target: Path, place: Path) -> Head:
    told = head(store, name)
    if told is None:
        raise FileNotFoundError(f"there is no object {name} any more; check the name")
    for folder in target.parents:
        if place in folder.parents:
            _make_way(folder, keep_folder=True)
    record = target.with_name(target.name + ".record.json")
    if _is_fresh(target, record, told):
        log.info("%s is in the cache already", without_secrets(name))
        return told
    for path in (target, record):
        _make_way(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="part-", dir=place) as folder:
        part = Path(folder, "object")
        download(store, name, part, told.size)
        facts = {"size": told.size, "version": told.version, "sha256": _checksum(part)}
        part.replace(target)
    record.write_text(json.dumps(facts | {"time": time.time()}), encoding="utf-8")
    return told


def _make_way(path: Path, *, keep_folder: bool = False) -> None:
    """Remove what stands where a file of the cache belongs, and is none: it leads elsewhere."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir() and not keep_folder:
        shutil.rmtree(path)


def _is_fresh(target: Path, record: Path, told: Head) -> bool:
    try:
        facts: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        known = facts["version"] == told.version if told.version else facts["time"] >= _STARTED
        links = target.is_symlink() or record.is_symlink()
        same = not links and known and facts["size"] == told.size == target.stat().st_size
        if same and facts["sha256"] != _checksum(target):
            log.warning("%s was changed after its download, and is downloaded again", target)
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return same


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
