"""A sample's answer, from logits to columns and back, whatever is kept of it."""

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from composer_distill.caching.few import keep_few, pack_few, unpack_few
from composer_distill.caching.index import MISSING
from composer_distill.caching.keys import read_batch
from composer_distill.caching.manifest import Recipe
from composer_distill.caching.packing import Columns, pack, pack_whole, unpack_whole
from composer_distill.caching.reader import Cache
from composer_distill.losses.sparse import SparseTarget

Answer = Tensor | SparseTarget
"""What is known of a sample: whole logits, or few classes a position."""


class Kept(NamedTuple):
    """What is kept of a sample.

    Attributes:
        columns: What is written.
        dtype: The type of what is written.
        positions: How many positions it has.
        mass: The probability, summed over positions, of the likeliest classes; else None.
    """

    columns: Columns
    dtype: torch.dtype
    positions: int
    mass: float | None = None


class Found(NamedTuple):
    """A batch's samples in a cache; no answers where one is missing."""

    answers: list[Answer]
    mask: Tensor | None
    samples: int
    missing: int


def encode(logits: Tensor, recipe: Recipe, key: np.ndarray) -> Kept:
    """Return what is kept of a sample.

    Args:
        logits: Its answer, on the CPU.
        recipe: What is kept.
        key: Its key.

    Shape:
        - logits: ``(..., C)``.
    """
    positions = math.prod(logits.shape[:-1])
    if recipe.kind == "logits":
        logits = logits if recipe.dtype is None else logits.to(getattr(torch, recipe.dtype))
        if not bool(logits.isfinite().all()):
            raise ValueError(
                f"logits of this size do not fit into {recipe.dtype}. Keep them in a wider dtype."
            )
        return Kept(pack_whole(logits), logits.dtype, positions)
    few = keep_few(logits, recipe, key)
    dtype = getattr(torch, recipe.dtype or "float16")
    shape = pack(torch.tensor(logits.shape[:-1], dtype=torch.int64))
    mass = float(few.log_probs.exp().sum()) if recipe.kind == "top_k" else None
    return Kept({"shape": shape, **pack_few(few, recipe, dtype)}, dtype, positions, mass)


def decode(columns: Columns, recipe: Recipe, dtype: torch.dtype, classes: int) -> Answer:
    """Return what is known of a sample."""
    if recipe.kind == "logits":
        return unpack_whole(columns, dtype)
    shape = np.frombuffer(columns["shape"], np.int64)
    return unpack_few(columns, int(shape.prod()), recipe, dtype, classes)


class Answers:
    """Finds and reads the answers to batches.

    Args:
        cache: Where they are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def find(self, view: Any, label_keys: Collection[str]) -> Found:
        """Return the answers to a batch's samples.

        Args:
            view: The batch.
            label_keys: Names of entries that are no input.
        """
        manifest = self._cache.manifest
        read = read_batch(view, manifest.fields, label_keys, manifest.lacked)
        places = self._cache.find(read.keys)
        missing = int((places == MISSING).sum())
        kept = [] if missing else places.tolist()
        answers: list[Answer] = []
        for place, row in zip(kept, self._cache.rows(kept), strict=True):
            with self._cache.told(place):
                dtype = getattr(torch, manifest.dtype)
                answers.append(decode(row, manifest.recipe, dtype, manifest.classes))
        return Found(answers, read.mask, len(places), missing)

    def of(
        self, logits: Tensor, view: Any, label_keys: Collection[str]
    ) -> tuple[list[SparseTarget], Tensor | None]:
        """Return what the cache would hold of a batch's samples, and where their positions are.

        Args:
            logits: A teacher's answer to the batch, on the CPU.
            view: The batch.
            label_keys: Names of entries that are no input.

        Shape:
            - logits: ``(B, ..., C)``.
        """
        manifest = self._cache.manifest
        read = read_batch(view, manifest.fields, label_keys, manifest.lacked)
        samples = list(logits)
        if manifest.by_position and read.mask is not None:
            samples = [one[kept] for one, kept in zip(logits, read.mask, strict=True)]
        pairs = zip(samples, read.keys, strict=True)
        return [keep_few(one, manifest.recipe, key) for one, key in pairs], read.mask
