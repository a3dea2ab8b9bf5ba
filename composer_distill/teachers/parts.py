"""A cache that every rank writes its part of, by a teacher that is whole or cut over them."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from composer.utils import FSDP2Config, ParallelismConfig, dist

from composer_distill.caching.keys import Read
from composer_distill.caching.manifest import Manifest, Recipe
from composer_distill.caching.reader import Cache
from composer_distill.caching.writer import PartWriter, finish, start
from composer_distill.teachers.teacher import Teacher


@dataclass(frozen=True)
class Asked:
    """A batch that a teacher may be asked about.

    Attributes:
        view: The batch on the device.
        read: Its samples' keys.
        fields: Which of its entries the teacher reads.
        lacked: Which others it would read.
        lacking: Which of its samples the cache lacks, ``(B,)``.
        for_others: Whether the teacher is asked only because another rank asks it.
    """

    view: Any
    read: Read
    fields: tuple[str, ...] | None
    lacked: tuple[str, ...]
    lacking: np.ndarray
    for_others: bool = False


def written(
    folder: Path, recipe: Recipe, shard_bytes: int, fill: Callable[[PartWriter], None]
) -> Manifest:
    """Let every rank fill its part of a folder, and return what is in it."""
    if dist.get_global_rank() == 0:
        recipe = start(folder, recipe)
    dist.barrier()
    writer = PartWriter(folder, dist.get_global_rank(), shard_bytes)
    try:
        fill(writer)
        writer.flush()
    finally:
        writer.close()
    dist.barrier()
    if dist.get_global_rank() == 0:
        finish(folder, recipe)
    dist.barrier()
    return Cache(folder).manifest


def check_can_be_cut(teacher: Teacher, sharded: bool) -> None:
    """Refuse what would keep ranks from asking a teacher that is cut over them equally often.

    Raises:
        ValueError: If the teacher reads a batch in parts, whose number depends on the batch.
    """
    if sharded and teacher.microbatch_size is not None:
        raise ValueError(
            f"{teacher.label}: microbatch_size={teacher.microbatch_size} can't be used with "
            "sharded=True, for every process must ask it equally often. Give smaller batches."
        )


def cut() -> ParallelismConfig:
    """Return what tells Composer to cut a model by FSDP2."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        return ParallelismConfig(fsdp2=FSDP2Config())


def in_step(batches: Iterable[Asked]) -> Iterator[Asked]:
    """Give batches so that every rank asks its teacher as often as any other.

    A rank that lacks nothing of a batch, or has no more of them, asks about its last one again.

    Raises:
        ValueError: On every rank, if one has no batch at all.
    """
    remaining, last = iter(batches), None
    while True:
        now = next(remaining, None)
        last = now or last
        lacks = now is not None and bool(now.lacking.any())
        ranks = dist.all_gather_object((now is not None, lacks, last is not None))
        if not any(there for there, _, _ in ranks):
            return
        if last is None or not all(able for _, _, able in ranks):
            raise ValueError(
                "sharded=True needs a batch for every process, and one has none. Start fewer "
                "processes, or give smaller batches."
            )
        if lacks:
            yield last
        elif any(wanted for _, wanted, _ in ranks):
            yield replace(last, lacking=np.zeros_like(last.lacking), for_others=True)
