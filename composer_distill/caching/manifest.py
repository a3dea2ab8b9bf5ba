"""What a cache is of: who answered, what was kept of the answers, and how much is there."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any

from composer_distill.caching.forms import check_forms
from composer_distill.weights.wording import plain

MANIFEST = "manifest.json"
FORMAT = "composer-distill cache"
VERSION = 1
_WRAPPER = "HuggingFaceModel"  # Composer's, whose weights are those of the model within
_OF_FEW = ("temperature", "seed")  # which whole logits have none of
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Recipe:
    """What is kept, known before the first answer: two runs that agree in it write one cache.

    Attributes:
        teacher: Who answers, as ``Teacher.identity`` says it.
        kind: ``'logits'``, ``'top_k'`` or ``'samples'``.
        count: k, or the number of draws a position; None for whole logits.
        temperature: What the logits were divided by; None for whole logits.
        seed: Seed of the draws; None where nothing is drawn.
        dtype: The type that is stored; None for that of the answers.
        vocab_size: How many classes are kept; None for all.
        tokenizer: What tells the teacher's tokenizer from others; None where it has none.
        labels: What the teacher calls its classes; None where it gives them no names.
    """

    teacher: str
    kind: str = "logits"
    count: int | None = None
    temperature: float | None = None
    seed: int | None = None
    dtype: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """A cache's own description; see ``docs/reference/caching.md``.

    Attributes:
        recipe: What is kept.
        finished: Whether all of the data was answered.
        classes: The number of classes.
        dtype: The type that is stored.
        by_position: Whether an answer holds the positions that are attended to, and not the
            whole tensor of a sample.
        fields: Names of the batch's entries that the teacher read; None for all but labels.
        lacked: Names of others that it reads, and that no batch had.
        samples: How many samples are there.
        positions: How many positions they have.
        bytes: The size of the shards.
        mass: The mean probability of what top-k keeps; None for other kinds.
        index: Checksum of the index.
        shards: Samples, bytes and checksum of each shard, by its path in the folder.
        versions: What it was written with.
    """

    recipe: Recipe
    finished: bool = False
    classes: int = 0
    dtype: str = ""
    by_position: bool = False
    fields: tuple[str, ...] | None = None
    lacked: tuple[str, ...] = ()
    samples: int = 0
    positions: int = 0
    bytes: int = 0
    mass: float | None = None
    index: str | None = None
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


def to_json(manifest: Manifest) -> str:
    """Return a manifest as text."""
    return json.dumps({"format": FORMAT, "version": VERSION, **asdict(manifest)}, indent=1)


def read_manifest(path: Path, where: str) -> Manifest:
    """Read a manifest; see ``from_json``.

    Args:
        path: The file.
        where: Which cache it is, for errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is none, or of a newer version.
    """
    if not path.is_file():  # nor is a named pipe waited for
        raise FileNotFoundError(f"{where} has no {MANIFEST}; give the folder of a cache")
    return from_json(path.read_text("utf-8", "replace"), where)


def from_json(text: str, where: str) -> Manifest:
    """Return the manifest that a text holds.

    Args:
        text: The content of ``manifest.json``.
        where: Which cache it is, for errors.

    Raises:
        ValueError: If it is none, or of a newer version.
    """
    try:
        entries = json.loads(text)
        known = isinstance(entries, dict) and entries.get("format") == FORMAT
    except (ValueError, RecursionError):
        entries, known = {}, False
    if not known:
        raise ValueError(
            f"{where}: its {MANIFEST} is none of a cache of teachers' answers. Give the folder "
            "that cache_teacher wrote."
        )
    version = entries.get("version")
    if version != VERSION:
        raise ValueError(
            f"{where}: its manifest is of version {plain(version)}, and this release reads version "
            f"{VERSION}. Update composer-distill, or write the cache anew."
        )
    try:
        recipe = entries.pop("recipe")
        check_forms(recipe)
        if recipe.get("labels") is not None:
            recipe["labels"] = tuple(recipe["labels"])
        names = {entry.name for entry in fields(Manifest)}
        found = {name: value for name, value in entries.items() if name in names}
        check_forms(found)
        for name in {"fields", "lacked"} & found.keys():
            found[name] = None if found[name] is None else tuple(found[name])
        _check_shards(found.get("shards", {}))
        return Manifest(Recipe(**recipe), **found)
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        what = plain(str(error))
        raise ValueError(f"{where}: its {MANIFEST} is damaged ({what}). Write it anew.") from error


def _check_shards(shards: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse shards that lie elsewhere, or of which nothing is told.

    Raises:
        TypeError: If something is of another form.
    """
    for name, shard in shards.items():
        path = PurePosixPath(name)
        odd = len(name) > _LONGEST_NAME or not name.isprintable() or "\\" in name
        if path.is_absolute() or ".." in path.parts or odd:
            raise TypeError(f"the shard {plain(name, 100)} lies outside of it")
        if type(shard["bytes"]) is not int or type(shard["checksum"]) is not str:
            raise TypeError(f"nothing is told of the shard {plain(name, 100)}")


def check_same(kept: Recipe, wanted: Recipe, where: str) -> None:
    """Refuse to add answers to a cache of others.

    Raises:
        ValueError: Naming what differs.
    """
    differing = []
    if (kept.kind, kept.count) != (wanted.kind, wanted.count):
        differing.append(f"{_what(kept)} where now it is {_what(wanted)}")
    for name in ("teacher", "temperature", "seed", "dtype", "vocab_size", "tokenizer", "labels"):
        before, now = getattr(kept, name), getattr(wanted, name)
        alike = before == now or (name == "teacher" and same_teacher(before, now))
        unknown = name == "labels" and before is None  # as in caches of former versions
        if not (alike or unknown or (name in _OF_FEW and None in (before, now))):
            differing.append(f"{name} {_shown(before)} where now it is {_shown(now)}")
    if differing:
        raise ValueError(
            f"{where} holds a cache with {'; '.join(differing)}. Nothing was changed in it. Give "
            "another folder, or the same teacher and arguments."
        )


def same_teacher(identity: str, other: str) -> bool:
    """Return whether two teachers answer alike: one may be the other in Composer's wrapper.

    Example:
        >>> same_teacher("GPT2Model, 8 parameters, abc", "HuggingFaceModel, 8 parameters, abc")
        True
    """
    kind, _, weights = identity.partition(", ")
    other_kind, _, others = other.partition(", ")
    return weights == others and (kind == other_kind or _WRAPPER in (kind, other_kind))


def _what(recipe: Recipe) -> str:
    """Return what is kept, as the arguments of ``cache_teacher`` say it."""
    return "whole logits" if recipe.kind == "logits" else f"{recipe.kind}={recipe.count}"


def _shown(value: Any) -> str:
    value = ", ".join(value)[:_LONGEST_NAME] if type(value) is tuple else value
    return repr(plain(value)) if type(value) is str else plain(value)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is either whole or not there, whatever happens meanwhile."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def summed(recipe: Recipe, shards: Mapping[str, Mapping[str, Any]], where: str) -> Manifest:
    """Return what shards hold together.

    Args:
        recipe: What is kept.
        shards: What is noted beside each shard, by its path in the folder.
        where: Which cache it is, for errors.

    Raises:
        ValueError: If the shards hold answers of unlike shapes or types.
    """
    manifest = Manifest(recipe)
    for name in ("classes", "dtype", "by_position", "fields", "lacked"):
        values = {json.dumps(shard[name]) for shard in shards.values()}
        if len(values) > 1:
            told = plain(", ".join(sorted(values)))
            raise ValueError(
                f"{where}: its answers differ in {name} ({told}), so that "
                "they are not of one teacher on one kind of data. Write a cache for each."
            )
        if values:
            value = json.loads(values.pop())
            manifest = replace(
                manifest, **{name: tuple(value) if isinstance(value, list) else value}
            )
    positions = _sum(shards.values(), "positions")
    kept = [shard["mass"] for shard in shards.values() if shard["mass"] is not None]
    return replace(
        manifest,
        samples=_sum(shards.values(), "samples"),
        positions=positions,
        bytes=_sum(shards.values(), "bytes"),
        mass=sum(kept) / positions if kept and positions else None,
        shards={
            path: {name: shard[name] for name in ("samples", "bytes", "checksum")}
            for path, shard in shards.items()
        },
    )


def _sum(shards: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(shard[name] for shard in shards)
