"""A small cache to write and to break."""

import numpy as np
import pytest
import torch

from composer_distill.caching.manifest import Recipe
from composer_distill.caching.packing import pack_whole
from composer_distill.caching.writer import PartWriter, finish, start

FACTS = {"classes": 3, "dtype": "float32", "by_position": False, "fields": None}


def key(number):
    return np.array([number % 5, number], np.uint64)  # many first halves are alike


def answer(number):
    return torch.full((3,), float(number))


def write(folder, numbers, *, part=0, recipe=None, shard_bytes=1 << 20):
    recipe = recipe or Recipe("a teacher")
    start(folder, recipe)
    writer = PartWriter(folder, part, shard_bytes)
    try:
        for number in numbers:
            writer.add(key(number), pack_whole(answer(number)), 1, None, FACTS)
        writer.flush()
    finally:
        writer.close()
    return finish(folder, recipe)


@pytest.fixture
def folder(tmp_path):
    """A finished cache of two parts and three shards."""
    write(tmp_path / "cache", range(12), shard_bytes=6 * 20)
    write(tmp_path / "cache", range(12, 18), part=1)
    return tmp_path / "cache"
