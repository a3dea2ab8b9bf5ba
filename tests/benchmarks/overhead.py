"""What ``Distillation`` costs beyond the student's step and the teacher's forward.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.overhead --json OUT > tables.md

Run from the repository's root. Each contestant is a real ``Trainer`` in a thread of its own, and
they take turns: in each round every one trains one batch while the others wait, in an order that is
drawn anew each time. A batch is timed from BATCH_START to BATCH_END. Ratios are taken within a
round; the tables show their median, its interval of 95 % confidence, and the quartiles. CPU time
is the thread's own and decides over the bars; wall clock is what a busy machine makes of it. The
student alone runs twice: how far the ratio of the two is from 1 is how far to trust the rest.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import math
import os
import platform
import random
import statistics
import threading
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Callback
from torch import nn

from composer_distill import Distillation, KLDivergence
from tests.benchmarks.losses import peak_bytes
from tests.benchmarks.workloads import (
    KD_WEIGHT,
    TASK_WEIGHT,
    WORKLOADS,
    Workload,
    distil_by_hand,
)


class Clock(Callback):
    """Times each batch, and keeps its loss so that contestants can be seen to do the same.

    Once it ``waits``, a batch begins when ``turn`` is given, and ``rest`` tells that the last one,
    and all that comes between two batches, is over.
    """

    def __init__(self):
        self.start = now()
        self.times: list[tuple[float, float]] = []
        self.loss = 0.0
        self.waits = False
        self.turn, self.rest = threading.Semaphore(0), threading.Semaphore(0)

    def batch_start(self, state, logger):
        if self.waits:
            self.rest.release()
            self.turn.acquire()
        self.start = now()

    def batch_end(self, state, logger):
        self.times.append(since(self.start))
        self.loss = float(state.loss)


def now() -> tuple[float, float]:
    return time.thread_time(), time.perf_counter()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Return the milliseconds of CPU time and of wall clock since ``start``."""
    cpu, wall = now()
    return 1e3 * (cpu - start[0]), 1e3 * (wall - start[1])


class Training:
    """A student in a Trainer, a batch at a time."""

    def __init__(self, work: Workload, algorithms: Any = (), teacher: nn.Module | None = None):
        self.clock, self.student = Clock(), work.student()
        if teacher is not None:
            distil_by_hand(self.student, teacher, work)
        self.trainer = Trainer(
            model=self.student,
            train_dataloader=work.batches(),
            optimizers=torch.optim.AdamW(self.student.parameters(), lr=1e-4),
            algorithms=algorithms,
            callbacks=self.clock,
            device="cpu",
            progress_bar=False,
        )

    def begin(self, batches: int):
        """Let a thread train until its first batch is to begin."""
        self.clock.waits = True
        self.thread = threading.Thread(target=self._train, args=(batches,), daemon=True)
        self.thread.start()
        self.clock.rest.acquire()

    def _train(self, batches: int):
        try:
            self.trainer.fit(duration=f"{batches}ba")
        finally:
            self.clock.rest.release()

    def step(self) -> tuple[float, float]:
        """Train one batch and return its milliseconds."""
        known = len(self.clock.times)
        self.clock.turn.release()
        self.clock.rest.acquire()
        if len(self.clock.times) == known:
            raise SystemExit("a Trainer stopped before its time")
        return self.clock.times[-1]

    def peak(self) -> int:
        self.thread.join()
        self.clock.waits = False
        self.student.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self.trainer.fit(duration="1ep"))


class Forward:
    """A teacher that answers alone, a batch at a time."""

    def __init__(self, work: Workload):
        self.work, self.teacher = work, work.teacher(1).eval()
        self.batches = itertools.cycle(work.batches())

    def begin(self, batches: int):
        """Nothing is to be prepared."""

    def step(self) -> tuple[float, float]:
        batch, start = next(self.batches), now()
        with torch.no_grad():
            self.work.ask(self.teacher, batch)
        return since(start)

    def peak(self) -> int:
        return peak_bytes(self.step)


WARM_UP = 4  # batches
CLOSE = 6
STUDENT, AGAIN, TEACHER, BY_HAND = "student", "student again", "teacher's forward", "by hand"
QUIET, DEFAULT = "`Distillation`, telemetry off", "`Distillation`"
FOUR_QUIET, FOUR = "one of four teachers, telemetry off", "one of four teachers"
OUTSIDE = "outside the window"


def contestants(work: Workload) -> dict[str, Training | Forward]:
    loss = KLDivergence(temperature=work.temperature)

    def term(n: int, **kwargs: Any) -> Training:
        teachers = [work.teacher(1 + index) for index in range(n)]
        sampled = 1 if n > 1 else None
        weights = KD_WEIGHT, TASK_WEIGHT
        return Training(
            work, Distillation(teachers, loss, *weights, n_teachers_to_sample=sampled, **kwargs)
        )

    return {
        STUDENT: Training(work),
        AGAIN: Training(work),
        TEACHER: Forward(work),
        BY_HAND: Training(work, teacher=work.teacher(1)),
        QUIET: term(1, telemetry=False),
        DEFAULT: term(1),
        FOUR_QUIET: term(4, telemetry=False),
        FOUR: term(4),
        OUTSIDE: term(1, start_dur="1000000ba", end_dur="1000001ba"),
    }


@dataclass(frozen=True)
class Claim:
    """One contestant against the sum of others, and the bar that it is held to, if any.

    A claim of 1 % takes more rounds to settle than the others: it has ``CLOSE`` times as many.
    """

    ours: str
    base: tuple[str, ...]
    limit: float | None = None
    close: bool = False

    def __str__(self):
        return f"{self.ours} / {' + '.join(self.base)}"


CLAIMS = (
    Claim(AGAIN, (STUDENT,), close=True),
    Claim(BY_HAND, (STUDENT, TEACHER)),
    Claim(QUIET, (STUDENT, TEACHER), 1.03),
    Claim(DEFAULT, (STUDENT, TEACHER), 1.03),
    Claim(QUIET, (BY_HAND,)),
    Claim(DEFAULT, (BY_HAND,)),
    Claim(FOUR_QUIET, (QUIET,), 1.05),
    Claim(FOUR, (DEFAULT,), 1.05),
    Claim(OUTSIDE, (STUDENT,), 1.01, close=True),
)


Found = dict[str, dict[str, list[float]]]
"""Each contestant's milliseconds a batch, by round, as ``cpu`` and ``wall``, and its ``bytes``."""


def measure(work: Workload, rounds: int) -> tuple[Found, Found]:
    """Return what was found of all contestants, and in more rounds of those of the close claims."""
    runs = contestants(work)
    close = {name for claim in CLAIMS if claim.close for name in (claim.ours, *claim.base)}
    for name, run in runs.items():
        run.begin(WARM_UP + rounds * (1 + CLOSE if name in close else 1))
        for _ in range(WARM_UP):
            run.step()
    check_same(runs)
    found = take_turns(runs, rounds)
    closer = take_turns({name: runs[name] for name in runs if name in close}, rounds * CLOSE)
    for name, run in runs.items():
        found[name]["bytes"] = [run.peak()]
        closer.get(name, {})["bytes"] = found[name]["bytes"]
    for run in runs.values():
        if isinstance(run, Training):
            run.trainer.close()
    return found, closer


def take_turns(runs: dict[str, Any], rounds: int) -> Found:
    found: Found = {name: {"cpu": [], "wall": []} for name in runs}
    order, generator = list(runs), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            cpu, wall = runs[name].step()
            found[name]["cpu"].append(cpu)
            found[name]["wall"].append(wall)
    return found


def check_same(runs: dict[str, Any]):
    """Refuse to compare runs that do not train on the same loss."""
    for ours, theirs in ((QUIET, BY_HAND), (DEFAULT, BY_HAND), (OUTSIDE, STUDENT)):
        one, other = runs[ours].clock.loss, runs[theirs].clock.loss
        if abs(one / other - 1) > 1e-3:
            raise SystemExit(f"{ours} ends on the loss {one}, {theirs} on {other}")


@dataclass(frozen=True)
class Ratio:
    """A claim's ratio over the rounds: its median, the median's bounds, and the quartiles."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]


def ratio(both: tuple[Found, Found], claim: Claim, key: str) -> Ratio:
    """Return a claim's ratio; its bounds hold the median with 95 % confidence, of any law."""
    found = both[claim.close]
    base = [sum(parts) for parts in zip(*(found[name][key] for name in claim.base), strict=True)]
    ratios = sorted(
        ours / theirs for ours, theirs in zip(found[claim.ours][key], base, strict=True)
    )
    n = len(ratios)
    first = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1)  # of the binomial, as a normal
    quartiles = ratios[n // 4], ratios[n - 1 - n // 4]
    return Ratio(statistics.median(ratios), ratios[first], ratios[n - 1 - first], quartiles)


def table(*columns: str):
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def show(work: Workload, both: tuple[Found, Found]):
    print(f"\n### {work.title}")
    table("", "CPU, ms a batch", "wall clock, ms", "peak memory, MiB")
    for name, values in both[0].items():
        cpu, wall = statistics.median(values["cpu"]), statistics.median(values["wall"])
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {values['bytes'][0] / 2**20:.1f} |")
    table("", "CPU", "95 % of the median", "quartiles", "wall clock", "quartiles", "peak memory")
    for claim in CLAIMS:
        cpu, wall, memory = (ratio(both, claim, key) for key in ("cpu", "wall", "bytes"))
        cells = [f"{cpu.median:.3f}", f"{cpu.low:.3f} to {cpu.high:.3f}"]
        cells += ["{:.3f} to {:.3f}".format(*cpu.quartiles)]
        cells += [f"{wall.median:.3f}", "{:.3f} to {:.3f}".format(*wall.quartiles)]
        print(f"| {claim} | {' | '.join(cells)} | {memory.median:.3f} |", flush=True)


def verdict(found: Ratio, limit: float) -> str:
    """Return whether a bar is met, which noise settles only if both bounds agree."""
    if found.high <= limit:
        return "yes"
    return "NO" if found.low > limit else "not settled"


def show_bars(results: dict[str, tuple[Found, Found]]):
    print("\n### Bars")
    table("workload", "ratio", "at most", "CPU", "met", "peak memory", "met")
    for name, both in results.items():
        for claim in CLAIMS:
            if claim.limit is not None:
                cells = [name, str(claim), f"{claim.limit:.2f}"]
                for key in ("cpu", "bytes"):
                    measured = ratio(both, claim, key)
                    cells += [f"{measured.median:.3f}", verdict(measured, claim.limit)]
                print(f"| {' | '.join(cells)} |")


def environment(rounds: int) -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    packages = "mosaicml", "torch", "torchvision", "transformers"
    return {
        "date": str(datetime.now(timezone.utc).date()),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "rounds": f"{rounds} ({rounds * CLOSE} of the student alone and outside the window)",
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--json", default=None, help="where to keep every round's values")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # untrained teachers are at chance level, which is warned of
    about = environment(options.rounds)
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results = {}
    for name in options.only.split(","):
        work = WORKLOADS[name]()
        results[name] = measure(work, options.rounds)
        show(work, results[name])
    show_bars(results)
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": about, "results": results}))


if __name__ == "__main__":
    main()
