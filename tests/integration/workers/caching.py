"""Caches that several processes write and train from."""

from typing import Any

import torch
from composer.utils import dist
from integration.harness import Classifier, dataset, fit, mlp, weights
from integration.workers.common import share
from torch.utils.data import DataLoader

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher

FLOAT32: Any = {"dtype": torch.float32}


def frozen():
    """A teacher that answers a sample alike whatever stands beside it in a batch."""
    return Teacher(mlp(1, **FLOAT32), microbatch_size=1)


def trained(teacher, data, **kwargs):
    term = Distillation(teacher, KLDivergence(2.0))
    return weights(
        fit(Classifier(mlp(0, **FLOAT32)), term, train_dataloader=data, **kwargs).state.model
    )


def cached_answers(folder):
    """Write with this many processes; train live and from the cache, at each microbatch size."""
    where = folder / f"answers of {dist.get_world_size()}"
    manifest = cache_teacher(frozen(), share(**FLOAT32), where, device="cpu")
    again = folder / f"shared out to {dist.get_world_size()}"
    loader = DataLoader(dataset(40, **FLOAT32), batch_size=8)  # which knows nothing of ranks
    other = cache_teacher(frozen(), loader, again, device="cpu")
    runs = {}
    for size in (1, 2, 5):
        options = {"device_train_microbatch_size": size, "max_duration": "2ep"}
        data = share(shuffle=True, **FLOAT32)
        live = trained(frozen(), data, **options)
        for name, place in (("own", where), ("shared", again)):
            runs[f"{name}, {size}"] = (trained(CachedTeacher(place), data, **options), live)
    return {
        "runs": runs,
        "samples": (manifest.samples, other.samples),
        "parts": (len(list(where.glob("part-*"))), len(list(again.glob("part-*")))),
    }
