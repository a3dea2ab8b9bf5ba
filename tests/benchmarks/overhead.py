"""What ``Distillation`` costs beyond the student's step and the teacher's forward.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.overhead --json OUT > tables.md

Run from the repository's root. One student trains in one real ``Trainer``, each batch as another
contestant: in each round every contestant has one batch, in an order that is drawn anew. All of
them share the student, the teachers, the data and so the places in memory: the same code in other
places differs by several per cent. The learning rate is 0, so that every batch can be compared with
every other. A batch is timed from BATCH_START to BATCH_END. Ratios are taken within a round; the
tables show their median, its interval of 95 % confidence, and the quartiles. CPU time is the
process's own and decides over the bars; wall clock is what a busy machine makes of it. The student
alone comes twice: how far the ratio of the two is from 1 is how far to trust the rest.
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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback

from composer_distill import Distillation, KLDivergence
from tests.benchmarks.losses import peak_bytes
from tests.benchmarks.workloads import (
    KD_WEIGHT,
    TASK_WEIGHT,
    WORKLOADS,
    ByHand,
    Workload,
)

WARM_UP = 4  # rounds
CLOSE = 4
STUDENT, AGAIN, TEACHER, BY_HAND = "student", "student again", "teacher's forward", "by hand"
QUIET, DEFAULT = "`Distillation`, telemetry off", "`Distillation`"
FOUR_QUIET, FOUR = "one of four teachers, telemetry off", "one of four teachers"
OUTSIDE = "outside the window"

Found = dict[str, dict[str, list[float]]]
"""Each contestant's milliseconds a batch, by round, as ``cpu`` and ``wall``, and its ``bytes``."""


@dataclass(frozen=True)
class Claim:
    """One contestant against the sum of others, and the bar that it is held to, if any.

    A claim of 1 or 3 % takes more rounds to settle than the others: it has ``CLOSE`` times as many.
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
    Claim(QUIET, (STUDENT, TEACHER), 1.03, close=True),
    Claim(DEFAULT, (STUDENT, TEACHER), 1.03, close=True),
    Claim(QUIET, (BY_HAND,)),
    Claim(DEFAULT, (BY_HAND,)),
    Claim(FOUR_QUIET, (QUIET,), 1.05),
    Claim(FOUR, (DEFAULT,), 1.05),
    Claim(OUTSIDE, (STUDENT,), 1.01, close=True),
)
IN_CLOSE = tuple(dict.fromkeys(n for c in CLAIMS if c.close for n in (*c.base, c.ours)))


class Contest(Callback):
    """Trains and times each batch as the contestant whose turn it is.

    Args:
        work: Models and data.
    """

    def __init__(self, work: Workload):
        self.work, self.student = work, work.student()
        self.teacher = work.teacher(1)
        self.by_hand = self.written()
        self.algorithms = self.contestants()
        self.turns: Iterator[str] = iter(())
        self.turn = STUDENT
        self.start = now()
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in self.algorithms}
        self.losses: dict[str, float] = {}
        self.trainer = Trainer(
            model=self.student,
            train_dataloader=work.batches(),
            optimizers=torch.optim.AdamW(self.student.parameters(), lr=0.0),
            algorithms=list(itertools.chain.from_iterable(self.algorithms.values())),
            callbacks=self,
            device="cpu",
            progress_bar=False,
        )

    def written(self) -> ByHand:
        """Return the distillation by hand."""
        return ByHand(self.student, self.teacher, self.work)

    def contestants(self) -> dict[str, list[Algorithm]]:
        """Return the algorithms of each."""
        teachers = [self.teacher, *(self.work.teacher(2 + index) for index in range(3))]
        loss = KLDivergence(temperature=self.work.temperature)
        weights = KD_WEIGHT, TASK_WEIGHT
        never = {"start_dur": "1000000000ba", "end_dur": "1000000001ba"}
        return {
            STUDENT: [],
            AGAIN: [],
            TEACHER: [],
            BY_HAND: [],
            QUIET: [Distillation(self.teacher, loss, *weights, telemetry=False)],
            DEFAULT: [Distillation(self.teacher, loss, *weights)],
            FOUR_QUIET: [
                Distillation(teachers, loss, *weights, n_teachers_to_sample=1, telemetry=False)
            ],
            FOUR: [Distillation(teachers, loss, *weights, n_teachers_to_sample=1)],
            OUTSIDE: [Distillation(self.teacher, loss, *weights, **never)],
        }

    def batch_start(self, state, logger):
        self.turn = next(self.turns)
        if self.turn == TEACHER:
            self.start = now()
            self.ask(state.batch)
            self.times[TEACHER].append(since(self.start))
            self.turn = next(self.turns)
        self.by_hand.acts = self.turn == BY_HAND
        state.algorithms = self.algorithms[self.turn]
        self.start = now()

    def batch_end(self, state, logger):
        self.times[self.turn].append(since(self.start))
        self.losses[self.turn] = float(state.loss)

    @torch.no_grad()
    def ask(self, batch: Any):
        self.work.ask(self.teacher, batch)

    def take_turns(self, names: Sequence[str], rounds: int) -> Found:
        """Return the milliseconds of each contestant's batch in each round."""
        self.turns = rounds_of(names, rounds)
        self.times = {name: [] for name in names}
        self.trainer.fit(duration=f"{rounds * len(set(names) - {TEACHER})}ba")
        return {
            name: {"cpu": [cpu for cpu, _ in times], "wall": [wall for _, wall in times]}
            for name, times in self.times.items()
        }

    def peak(self, name: str) -> int:
        """Return the most bytes that a few batches of a contestant allocate."""
        if name == TEACHER:
            batch = next(iter(self.work.batches()))
            return peak_bytes(lambda: self.ask(batch))
        self.student.zero_grad(set_to_none=True)
        return peak_bytes(lambda: self.take_turns([name], 4))


def now() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Return the milliseconds of CPU time and of wall clock since ``start``."""
    cpu, wall = now()
    return 1e3 * (cpu - start[0]), 1e3 * (wall - start[1])


def rounds_of(names: Sequence[str], rounds: int) -> Iterator[str]:
    """Yield all names in each round, in an order of its own; the teacher precedes a batch."""
    order, generator = list(names), random.Random(0)
    for _ in range(rounds):
        generator.shuffle(order)
        if order[-1] == TEACHER:
            order.reverse()
        yield from order


def measure(work: Workload, minutes: float) -> tuple[Found, Found]:
    """Return what was found of all contestants, and in more rounds of those of the close claims."""
    contest = Contest(work)
    names = list(contest.algorithms)
    contest.take_turns(names, 1)
    check_same(contest.losses)
    start = time.perf_counter()
    contest.take_turns(names, WARM_UP)
    # A third of the time for all, about two thirds for the close claims
    rounds = max(3, int(WARM_UP * 20 * minutes / (time.perf_counter() - start)))
    found = contest.take_turns(names, rounds)
    closer = contest.take_turns(IN_CLOSE, rounds * CLOSE)
    contest.peak(STUDENT)  # the first look sees what is allocated only once
    for name in names:
        found[name]["bytes"] = [contest.peak(name)]
        closer.get(name, {})["bytes"] = found[name]["bytes"]
    contest.trainer.close()
    return found, closer


def check_same(losses: dict[str, float]):
    """Refuse to compare contestants that do not train on the same loss."""
    for ours, theirs in ((QUIET, BY_HAND), (DEFAULT, BY_HAND), (OUTSIDE, STUDENT)):
        one, other = losses[ours], losses[theirs]
        if abs(one / other - 1) > 1e-5:
            raise SystemExit(f"{ours} trains on the loss {one}, {theirs} on {other}")
    if abs(losses[DEFAULT] / losses[STUDENT] - 1) < 1e-3:
        raise SystemExit("the distilled loss is the student's own")


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
    print(f"\n### {work.title}\n")
    rounds, closer = (len(found[STUDENT]["cpu"]) for found in both)
    print(f"{rounds} rounds; {closer} of the claims of 1 and 3 %, and of the control.")
    table("", "CPU, ms a batch", "wall clock, ms", "peak memory, MiB")
    for name, values in both[0].items():
        cpu, wall = statistics.median(values["cpu"]), statistics.median(values["wall"])
        print(f"| {name} | {cpu:.1f} | {wall:.1f} | {values['bytes'][0] / 2**20:.1f} |")
    table("", "CPU", "95 % of the median", "quartiles", "wall clock", "peak memory")
    for claim in CLAIMS:
        cpu, wall, memory = (ratio(both, claim, key) for key in ("cpu", "wall", "bytes"))
        cells = [f"{cpu.median:.3f}", f"{cpu.low:.3f} to {cpu.high:.3f}"]
        cells += ["{:.3f} to {:.3f}".format(*cpu.quartiles)]
        cells += [f"{wall.median:.3f}", f"{memory.median:.3f}"]
        print(f"| {claim} | {' | '.join(cells)} |", flush=True)


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


def environment() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
    models = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    packages = "mosaicml", "torch", "torchvision", "transformers"
    return {
        "date": str(datetime.now(timezone.utc).date()),
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="for each workload")
    parser.add_argument("--only", default=",".join(WORKLOADS), help="workloads, with commas")
    parser.add_argument("--json", default=None, help="where to keep every round's values")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # untrained teachers are at chance level, which is warned of
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results = {}
    for name in options.only.split(","):
        work = WORKLOADS[name]()
        results[name] = measure(work, options.minutes)
        show(work, results[name])
    show_bars(results)
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": about, "results": results}))


if __name__ == "__main__":
    main()
