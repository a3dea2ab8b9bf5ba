"""What a step costs a student that learns from cached answers, and what reading a cache takes.

Under five minutes on an idle machine, from the repository's root::

    python -m tests.benchmarks.caching_speed --output docs/caching-speed.json

A student trains through the real ``Trainer``, its rows in turns: alone; from a live teacher four
times its width; from each kind of cache; and from answers that are in memory already, which is what
the loss alone costs. Then caches of growing size are read to their end, and the memory that files
take of the process is noted.
"""

import argparse
import json
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.core import Callback
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher
from composer_distill.caching.answers import Answers
from composer_distill.caching.manifest import Recipe
from composer_distill.caching.reader import Cache
from composer_distill.caching.writer import PartWriter, finish, start
from tests.benchmarks.caching import facts

CLASSES, LENGTH, BATCH, SKIPPED = 8192, 64, 4, 3
CACHES: dict[str, dict[str, Any]] = {
    "whole logits": {},
    "top-k 64": {"top_k": 64},
    "50 draws": {"samples": 50},
}
ROWS = ("alone", "live teacher", *CACHES, *(f"{name}, in memory" for name in CACHES))


class Reader(ComposerModel):
    """A recurrent language model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, width)
        self.layers = nn.GRU(width, width, 2, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.layers(self.embedding(batch[0]))[0])

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1), batch[1].flatten())


class StepTime(Callback):
    """Notes how long each step takes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def batch_start(self, state: Any, logger: Any) -> None:
        self._began = time.perf_counter()

    def batch_end(self, state: Any, logger: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)


def loader(steps: int) -> DataLoader[Any]:
    """Return batches of random tokens."""
    ids = torch.randint(
        CLASSES, (steps * BATCH, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    return DataLoader(TensorDataset(ids, ids.roll(-1, 1)), BATCH)


def step_ms(row: str, teacher: Reader, folder: Path, width: int, steps: int) -> float:
    """Return the median time of a row's steps."""
    name, _, in_memory = row.partition(", ")
    source: Any = Teacher(teacher) if row == "live teacher" else None
    if name in CACHES:
        source = CachedTeacher(folder / name)
    clock, student = StepTime(), Reader(width)
    find = Answers.find
    if in_memory:
        kept = find(Answers(source.cache), next(iter(loader(steps))), ())
        Answers.find = lambda self, view, label_keys: kept  # pyright: ignore[reportAttributeAccessIssue]
    try:
        term = None if source is None else Distillation(source, KLDivergence(1.0), telemetry=False)
        trainer = Trainer(
            model=student,
            train_dataloader=loader(steps),
            max_duration="1ep",
            optimizers=torch.optim.AdamW(student.parameters(), lr=1e-3),
            algorithms=term,
            callbacks=clock,
            progress_bar=False,
            device="cpu",
        )
        trainer.fit()
        trainer.close()
    finally:
        Answers.find = find
    return 1000 * statistics.median(clock.seconds[SKIPPED:])


def mapped() -> int:
    """Return how many bytes of files lie in this process's memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def memory_of(gigabytes: float, folder: Path) -> dict[str, float]:
    """Write a cache of random answers, read all of it, and tell the memory that it took."""
    recipe = Recipe("nobody")
    start(folder, recipe)
    writer = PartWriter(folder, 0)
    facts = {"classes": 1 << 18, "dtype": "int8", "by_position": False, "fields": None}
    numbers = int(gigabytes * 4000)
    shape = np.array([1 << 18], np.int64).tobytes()
    for number in range(numbers):
        columns = {"shape": shape, "values": os.urandom(1 << 18)}
        writer.add(np.array([number, 0], np.uint64), columns, 1, None, facts)
    writer.flush()
    writer.close()
    size = finish(folder, recipe).bytes
    before, most, began = mapped(), 0, time.perf_counter()
    cache = Cache(folder)
    for number in range(numbers):
        cache.rows(cache.find(np.array([[number, 0]], np.uint64)).tolist())
        most = max(most, mapped() - before)
    seconds = time.perf_counter() - began
    return {"gigabytes": size / 1e9, "megabytes_in_memory": most / 1e6, "seconds": seconds}


def measure(width: int, steps: int, rounds: int, sizes: list[float]) -> dict[str, Any]:
    """Return all that is measured."""
    torch.set_num_threads(1)
    teacher = Reader(4 * width)
    times: dict[str, list[float]] = {row: [] for row in ROWS}
    sizes_of = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name, options in CACHES.items():
            began = time.perf_counter()
            kept = cache_teacher(teacher, loader(steps), folder / name, device="cpu", **options)
            sizes_of[name] = {
                "bytes_a_token": kept.bytes / kept.positions,
                "written_tokens_a_second": kept.positions / (time.perf_counter() - began),
            }
        for _ in range(rounds):
            for row in ROWS:
                times[row].append(step_ms(row, teacher, folder, width, steps))
        memory = [memory_of(size, folder / str(size)) for size in sizes]
    return {
        **facts(),
        "settings": {"width": width, "steps": steps, "rounds": rounds, "load": os.getloadavg()[0]},
        "caches": sizes_of,
        "step_ms": times,
        "memory": memory,
    }


def table(document: dict[str, Any]) -> str:
    """Return the steps' times, and what they are of the student's own, as Markdown."""
    alone = document["step_ms"]["alone"]
    lines = [
        "| student from | bytes a token | step, ms | of the student alone |",
        "|---|---|---|---|",
    ]
    for row, times in document["step_ms"].items():
        size = document["caches"].get(row)
        bytes_ = f"{size['bytes_a_token']:.0f}" if size else ""
        ratio = statistics.median(one / own for one, own in zip(times, alone, strict=True))
        lines.append(f"| {row} | {bytes_} | {statistics.median(times):.1f} | {ratio:.3f} |")
    lines += [
        "",
        "| cache, GB | memory that its files took at most, MB | read in, s |",
        "|---|---|---|",
    ]
    for one in document["memory"]:
        lines.append(
            f"| {one['gigabytes']:.2f} | {one['megabytes_in_memory']:.0f} | {one['seconds']:.1f} |"
        )
    return "\n".join(lines)


def shown(document: dict[str, Any]) -> str:
    """Return what the page shows."""
    load = document["settings"]["load"]
    told = f"two cores, one thread used, load {load:.1f} at the end"
    return f"Measured on {document['date']}; {told}.\n\n{table(document)}"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.25, 0.5, 1.0])
    given = parser.parse_args(arguments)
    document = measure(given.width, given.steps, given.rounds, given.gigabytes)
    given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
