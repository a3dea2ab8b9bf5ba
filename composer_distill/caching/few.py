"""Few classes a position: the likeliest, or some that are drawn."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from composer_distill.caching.manifest import Recipe
from composer_distill.caching.packing import Columns, pack, unpack
from composer_distill.losses.sparse import SparseTarget

_ENTRIES = 1 << 22  # that are looked at at once
_WIDE, _SPREAD = 1 << 26, 100  # how many entries a sample may have, and for each class in it


def keep_few(logits: Tensor, recipe: Recipe, key: np.ndarray) -> SparseTarget:
    """Return what is kept of a sample's logits.

    Args:
        logits: A sample's answer on the CPU.
        recipe: What is kept.
        key: The sample's key: the draws depend on it and on the recipe's seed alone.

    Shape:
        - logits: ``(..., C)``.

    Raises:
        ValueError: If more classes are wanted than there are.
    """
    rows = logits.reshape(-1, logits.shape[-1])
    classes, count = rows.shape[1], recipe.count or 1
    if recipe.kind == "top_k" and count > classes:
        raise ValueError(
            f"top_k must be at most the teacher's {classes} classes, got {count}. Leave it out to "
            "keep whole logits."
        )
    generator = np.random.default_rng([recipe.seed or 0, *key.tolist()])
    size = max(1, _ENTRIES // classes)
    take = _likeliest if recipe.kind == "top_k" else _drawn
    parts = [take(part, recipe, count, generator) for part in rows.split(size)]
    return join(parts) if parts else _nothing(classes, recipe, count)


def _likeliest(
    rows: Tensor, recipe: Recipe, count: int, generator: np.random.Generator
) -> SparseTarget:
    log_p = (rows.float() / (recipe.temperature or 1.0)).log_softmax(-1)
    kept, indices = log_p.topk(count, -1)
    tail = log_p.scatter(-1, indices, -math.inf).logsumexp(-1)
    return _target(indices, kept, tail, log_p, recipe)


def _drawn(
    rows: Tensor, recipe: Recipe, count: int, generator: np.random.Generator
) -> SparseTarget:
    log_p = (rows.float() / (recipe.temperature or 1.0)).log_softmax(-1)
    cumulated = log_p.double().exp().cumsum(-1)
    drawn = torch.from_numpy(generator.random((len(rows), count))) * cumulated[:, -1:]
    found = torch.searchsorted(cumulated, drawn, right=True).clamp_(max=rows.shape[1] - 1)
    shares = found.sort(-1).values
    new = torch.ones_like(shares, dtype=torch.bool)
    new[:, 1:] = shares[:, 1:] != shares[:, :-1]
    slot = new.cumsum(-1) - 1  # equal draws share one
    width = int(slot.max()) + 1
    times = torch.zeros(len(rows), width).scatter_add_(1, slot, torch.ones(slot.shape))
    indices = torch.zeros(len(rows), width, dtype=torch.long).scatter_(1, slot, shares)
    tail = torch.full((len(rows),), -math.inf)
    return _target(indices, (times / count).log(), tail, log_p, recipe)


def _target(
    indices: Tensor, log_probs: Tensor, tail: Tensor, log_p: Tensor, recipe: Recipe
) -> SparseTarget:
    entropy = -(log_p.exp() * log_p).sum(-1)
    drawn = recipe.kind == "samples"
    temperature = recipe.temperature or 1.0
    return SparseTarget(indices, log_probs, tail, entropy, log_p.shape[1], temperature, drawn)


def _nothing(classes: int, recipe: Recipe, count: int) -> SparseTarget:
    none, few = torch.zeros(0), torch.zeros(0, count)
    drawn = recipe.kind == "samples"
    return SparseTarget(few.long(), few, none, none, classes, recipe.temperature or 1.0, drawn)


def join(parts: Sequence[SparseTarget]) -> SparseTarget:
    """Return what is known at the positions of all parts, in their order."""
    width = max(part.indices.shape[1] for part in parts)

    def wide(tensor: Tensor, filling: float) -> Tensor:
        missing = width - tensor.shape[1]
        return torch.nn.functional.pad(tensor, (0, missing), value=filling) if missing else tensor

    one = parts[0]
    return SparseTarget(
        torch.cat([wide(part.indices, 0) for part in parts]),
        torch.cat([wide(part.log_probs, -math.inf) for part in parts]),
        torch.cat([part.tail for part in parts]),
        torch.cat([part.entropy for part in parts]),
        one.classes,
        one.temperature,
        one.sampled,
    )


def pack_few(kept: SparseTarget, recipe: Recipe, dtype: torch.dtype) -> dict[str, bytes]:
    """Return the columns of a sample of whom few classes are kept."""
    ids = torch.uint16 if kept.classes <= 1 << 16 else torch.int32
    entropy = {"entropy": pack(kept.entropy)}
    if recipe.kind == "top_k":
        return {
            "indices": pack(kept.indices.to(ids)),
            "log_probs": pack(kept.log_probs.to(dtype)),
            "tail": pack(kept.tail.to(dtype)),
            **entropy,
        }
    there = kept.log_probs > -math.inf
    times = (kept.log_probs.exp() * (recipe.count or 1)).round()
    number = _number_type(recipe.count or 1)
    return {
        "distinct": pack(there.sum(-1).to(number)),
        "indices": pack(kept.indices[there].to(ids)),
        "times": pack(times[there].to(number)),
        **entropy,
    }


def unpack_few(
    columns: Columns, positions: int, recipe: Recipe, dtype: torch.dtype, classes: int
) -> SparseTarget:
    """Return what is known of a sample."""
    ids = torch.uint16 if classes <= 1 << 16 else torch.int32
    count, temperature = recipe.count or 1, recipe.temperature or 1.0
    entropy = unpack(columns["entropy"], torch.float32, (positions,))
    if recipe.kind == "top_k":
        indices = unpack(columns["indices"], ids, (positions, count)).to(torch.int64)
        _check_classes(indices, classes)
        log_probs = unpack(columns["log_probs"], dtype, (positions, count)).float()
        tail = unpack(columns["tail"], dtype, (positions,)).float()
        # What was rounded sums to 1 again
        total = torch.logaddexp(log_probs.logsumexp(-1), tail)
        log_probs, tail = log_probs - total.unsqueeze(1), tail - total
        return SparseTarget(indices, log_probs, tail, entropy, classes, temperature)
    number = _number_type(count)
    distinct = unpack(columns["distinct"], number, (positions,)).to(torch.int64)
    all_of_them = int(distinct.sum())
    flat = unpack(columns["indices"], ids, (all_of_them,)).to(torch.int64)
    times = unpack(columns["times"], number, (all_of_them,)).float()
    _check_classes(flat, classes)
    width = int(distinct.max()) if positions else count
    if all_of_them and (int(distinct.min()) < 1 or width > count):
        raise ValueError(f"a position has {width} classes of {count} draws")
    if positions * width > max(_WIDE, _SPREAD * all_of_them):
        raise ValueError(f"{positions} positions of {width} classes are {all_of_them} classes")
    there = torch.arange(width) < distinct.unsqueeze(1)
    indices = torch.zeros(positions, width, dtype=torch.long)
    indices[there] = flat
    log_probs = torch.full((positions, width), -math.inf)
    log_probs[there] = (times / count).log()
    tail = torch.full((positions,), -math.inf)
    return SparseTarget(indices, log_probs, tail, entropy, classes, temperature, True)


def _check_classes(indices: Tensor, classes: int) -> None:
    """Refuse classes that are none, which would be read beyond the student's."""
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < classes:
        raise ValueError(f"class {int(indices.max())} is kept of {classes} classes")


def _number_type(count: int) -> torch.dtype:
    return torch.uint8 if count < 1 << 8 else torch.int32
