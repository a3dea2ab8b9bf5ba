"""A cache that every rank writes its part of."""

from collections.abc import Callable
from pathlib import Path

from composer.utils import dist

from composer_distill.caching.manifest import Manifest, Recipe
from composer_distill.caching.reader import Cache
from composer_distill.caching.writer import PartWriter, finish, start


def written(
    folder: Path, recipe: Recipe, shard_bytes: int, fill: Callable[[PartWriter], None]
) -> Manifest:
    """Let every rank fill its part of a folder, and return what is in it."""
    if dist.get_global_rank() == 0:
        start(folder, recipe)
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
