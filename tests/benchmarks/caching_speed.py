"""What a step costs a student that learns from cached answers, and what reading a cache takes.

Some ten minutes, from the repository's root::

    OMP_NUM_THREADS=1 python -m tests.benchmarks.caching_speed --output docs/caching-speed.json

Steps are timed as ``overhead.py`` times them: one student in one real ``Trainer``, each batch as
another contestant, in an order that is drawn anew in each round. No two batches of a round are the
same, so that each is looked up anew. CPU time is the process's, the thread that reads ahead
included. Then caches of growing size are read to their end, and the memory that files take of the
process is noted.
"""

import argparse
import dataclasses
import json
import logging
import os
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.core import Algorithm
from torch.utils.data import DataLoader

from composer_distill import CachedTeacher, Distillation, KLDivergence, cache_teacher
from composer_distill.caching.manifest import Recipe
from composer_distill.caching.reader import Cache
from composer_distill.caching.writer import PartWriter, finish, start
from tests.benchmarks.caching import facts
from tests.benchmarks.overhead import (
    AGAIN,
    STUDENT,
    Claim,
    Contest,
    Found,
    environment,
    ratio,
)
from tests.benchmarks.workloads import KD_WEIGHT, TASK_WEIGHT, WORKLOADS, Workload, vision

LIVE, TOLD = "live teacher", "whole logits, with telemetry"
CACHES: dict[str, dict[str, Any]] = {
    "whole logits": {},
    "top-k 64": {"top_k": 64},
    "50 draws": {"samples": 50},
}
SHUFFLENETS = "shufflenet_v2_x0_5", "shufflenet_v2_x1_0"
WORKS: list[tuple[Callable[[], Workload], list[str], int]] = [
    (partial(vision, *SHUFFLENETS, images=16), ["whole logits"], 300),  # some 45 ms a step
    (WORKLOADS["text"], list(CACHES), 60),
]
"""What is trained, from which caches, and for how many rounds."""
BATCHES = 32


class CachedContest(Contest):
    """Times the student alone, from a live teacher, and from each cache.

    Args:
        work: Models and data.
        caches: Their folders, by their names.
    """

    def __init__(self, work: Workload, caches: dict[str, Path]):
        self.caches = caches
        super().__init__(work)

    def contestants(self) -> dict[str, list[Algorithm]]:
        """Return each contestant's algorithms."""

        def learn(source: Any, telemetry: bool = False) -> list[Algorithm]:
            loss = KLDivergence(temperature=self.work.temperature)
            return [Distillation(source, loss, KD_WEIGHT, TASK_WEIGHT, telemetry=telemetry)]

        return {
            STUDENT: [],
            AGAIN: [],
            LIVE: learn(self.teacher),
            **{name: learn(CachedTeacher(folder)) for name, folder in self.caches.items()},
            TOLD: learn(CachedTeacher(self.caches["whole logits"]), telemetry=True),
        }


def unlike(work: Workload) -> Workload:
    """Return the workload with batches that differ from each other."""
    first = next(iter(work.batches()))

    def batches() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(1)
        if isinstance(first, dict):
            ids = [_tokens(first["input_ids"], generator) for _ in range(BATCHES)]
            rows: Sequence[Any] = [{"input_ids": x, "labels": x} for x in torch.cat(ids)]
            size = len(first["input_ids"])
        else:
            pixels = [torch.randn(first[0].shape, generator=generator) for _ in range(BATCHES)]
            rows = list(zip(torch.cat(pixels), first[1].repeat(BATCHES), strict=True))
            size = len(first[0])
        return DataLoader(rows, batch_size=size)  # pyright: ignore[reportArgumentType]

    return dataclasses.replace(work, batches=batches)


def _tokens(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(int(like.max()), like.shape, generator=generator)


def time_steps(work: Workload, caches: list[str], rounds: int, folder: Path) -> dict[str, Any]:
    """Return each contestant's milliseconds in each round, and the caches' sizes."""
    work, sizes, folders = unlike(work), {}, {}
    for cache in caches:
        folders[cache] = folder / cache
        kept = cache_teacher(
            work.teacher(1), work.batches(), folders[cache], device="cpu", **CACHES[cache]
        )
        sizes[cache] = kept.bytes / kept.positions
    contest = CachedContest(work, folders)
    contest.take_turns(list(contest.algorithms), 4)
    found = contest.take_turns(list(contest.algorithms), rounds)
    contest.trainer.close()
    return {"title": work.title, "bytes_a_position": sizes, "ms": _rounded(found)}


def _rounded(found: Found) -> Found:
    return {
        name: {key: [round(value, 2) for value in values] for key, values in times.items()}
        for name, times in found.items()
    }


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


def measure(sizes: list[float], fast: bool) -> dict[str, Any]:
    """Return all that is measured."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # untrained teachers are at chance level, which is warned of
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        steps = [
            time_steps(work(), caches, 5 if fast else rounds, folder / str(number))
            for number, (work, caches, rounds) in enumerate(WORKS)
        ]
        memory = []
        for size in sizes:
            memory.append(memory_of(size, folder / "read"))
            shutil.rmtree(folder / "read")
    about = {"processor": environment()["processor"], "load": os.getloadavg()[0]}
    return {**facts(), "settings": about, "steps": steps, "memory": memory}


def table(document: dict[str, Any]) -> str:
    """Return the steps' times, and what they are of the student's own, as Markdown."""
    lines = []
    for steps in document["steps"]:
        lines += [
            f"{steps['title']}; {len(steps['ms'][STUDENT]['cpu'])} rounds:",
            "",
            "| student from | bytes a position | CPU, ms a step | of the student alone "
            "| 95 % of the median | wall clock |",
            "|---|---|---|---|---|---|",
            *(f"| {' | '.join(_cells(steps, name))} |" for name in steps["ms"]),
            "",
        ]
    lines += [
        "| cache, GB | memory that its files took at most, MB | read in, s |",
        "|---|---|---|",
    ]
    for one in document["memory"]:
        lines.append(
            f"| {one['gigabytes']:.2f} | {one['megabytes_in_memory']:.0f} | {one['seconds']:.1f} |"
        )
    return "\n".join(lines)


def _cells(steps: dict[str, Any], name: str) -> list[str]:
    found, size = steps["ms"], steps["bytes_a_position"].get(name)
    cpu, wall = (ratio((found, found), Claim(name, (STUDENT,)), key) for key in ("cpu", "wall"))
    own = statistics.median(found[name]["cpu"])
    bounds = "" if name == STUDENT else f"{cpu.low:.3f} to {cpu.high:.3f}"
    room = f"{size:.0f}" if size else ""
    return [name, room, f"{own:.1f}", f"{cpu.median:.3f}", bounds, f"{wall.median:.3f}"]


def shown(document: dict[str, Any]) -> str:
    """Return what the page shows."""
    settings = document["settings"]
    told = f"{settings['processor']}, one thread, load {settings['load']:.1f} at the end"
    return f"Measured on {document['date']}; {told}.\n\n{table(document)}"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--fast", action="store_true", help="few rounds: a smoke test, no result")
    parser.add_argument("--gigabytes", type=float, nargs="*", default=[0.5, 2.0, 10.0])
    given = parser.parse_args(arguments)
    document = measure(given.gigabytes, given.fast)
    given.output.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
