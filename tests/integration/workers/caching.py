"""Caches that several processes write and train from."""

from typing import Any

import numpy as np
import torch
from composer.utils import dist
from integration.harness import Classifier, dataset, fit, mlp, weights
from integration.workers.common import share
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from torch import nn
from torch.utils.data import DataLoader, Dataset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher
from composer_distill.caching.keys import read_batch
from composer_distill.caching.packing import unpack_whole

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


# Labels hidden in the answers: sample i is known by its label, and so is its answer. The loss of
# this pair is 0 only where each row met its own.


class Numbered(Dataset):
    """Samples whose label is their number, and which the student answers with that number."""

    def __len__(self):
        return 37

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, generator=generator), torch.tensor(index)


class Telling(nn.Module):
    """Answers a sample with the number that its first value hides."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        table = torch.stack([Numbered()[i][0] for i in range(len(Numbered()))])
        self.register_buffer("table", table)

    def forward(self, inputs):
        number = (inputs[:, None] == self.table).all(-1).float().argmax(-1)
        return torch.stack([number, -number], -1) + self.zero


class Rows:
    """A loss that keeps each row's pair, and whose value is their distance."""

    def __init__(self):
        self.pairs = []

    def __call__(self, student, teacher):
        self.pairs += zip(student[:, 0].tolist(), teacher[:, 0].tolist(), strict=True)
        return (student - teacher).abs().mean()


def own_loss(outputs, targets):
    assert torch.equal(outputs[:, 0].detach(), targets.float())
    return outputs.sum() * 0.0


def met(folder, data, **kwargs):
    """Return the pairs of numbers that met in a run."""
    rows = Rows()
    kwargs.setdefault("device_train_microbatch_size", 1)
    student = Classifier(Telling(), own_loss)
    term = Distillation(CachedTeacher(folder), rows, telemetry=False)
    trainer = fit(student, term, train_dataloader=data, lr=0.0, **kwargs)
    assert all(own == other for own, other in rows.pairs)
    return [int(own) for own, _ in rows.pairs], trainer


class Stream(StreamingDataset):
    """The numbered samples, from files."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return torch.from_numpy(sample["x"].copy()), torch.tensor(sample["y"])


def stream_of(folder):
    """Return the numbered samples as a stream that shuffles itself."""
    if dist.get_global_rank() == 0:
        with MDSWriter(out=str(folder), columns={"x": "ndarray:float32:3", "y": "int"}) as out:
            for inputs, number in map(Numbered().__getitem__, range(len(Numbered()))):
                out.write({"x": inputs.numpy(), "y": int(number)})
    dist.barrier()
    return Stream(local=str(folder), shuffle=True, batch_size=4, num_canonical_nodes=1)


def rows_of_ranks(folder):
    """Return the numbers that each kind of loader brought; each met its own answer."""
    answers = folder / "numbers"
    cache_teacher(Telling(), DataLoader(Numbered(), batch_size=8), answers, device="cpu")
    seen = {}
    for drop in (False, True):
        sampler = dist.get_sampler(Numbered(), shuffle=True, drop_last=drop)
        data = DataLoader(Numbered(), batch_size=4, sampler=sampler, drop_last=drop)
        options = {"device_train_microbatch_size": 2, "max_duration": "2ep"}
        seen[f"drop_last={drop}"] = met(answers, data, **options)[0]
    stream = StreamingDataLoader(stream_of(folder / "mds"), batch_size=4)
    seen["stream"] = met(answers, stream, max_duration="2ep")[0]
    return seen


def cached_by_a_cut_teacher(folder):
    """Return the answers of a teacher that is cut over the ranks, and those of the whole one."""
    options = {"n": 40, **FLOAT32}
    inputs = dataset(**options).tensors[0]
    teacher = mlp(1, **FLOAT32)
    expected = mlp(1, **FLOAT32)(inputs).detach()
    where = folder / "of a cut teacher"
    data = DataLoader(
        dataset(**options), batch_size=8
    )  # three batches for one rank, two for the other
    manifest = cache_teacher(teacher, data, where, device="cpu", sharded=True)
    more = share(48, **FLOAT32)  # of whom some are there
    again = cache_teacher(mlp(1, **FLOAT32), more, where, device="cpu", sharded=True)
    cache = CachedTeacher(where).cache
    keys = read_batch(inputs, None).keys
    rows = cache.rows(cache.find(np.asarray(keys)).tolist())
    return {
        "answers": torch.stack([unpack_whole(row, torch.float32) for row in rows]),
        "expected": expected,
        "samples": (manifest.samples, again.samples),
        "identity": manifest.recipe.teacher == Teacher(mlp(1, **FLOAT32)).identity(),
        "cut": any(hasattr(parameter, "to_local") for parameter in teacher.parameters()),
    }
