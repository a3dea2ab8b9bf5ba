"""What a term of a hidden state costs beyond student, teacher and the term's own arithmetic.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.feature_overhead --json OUT > tables.md

As ``overhead.py``, in whose Trainer, rounds and order it measures. One contestant is the teacher's
forward, without a language model's head, and the distance of two such layers, forward and backward.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm
from torch import Tensor, nn
from torch.nn import functional as F

from composer_distill import Distillation, FeatureTerm
from composer_distill.losses import HiddenMSE
from tests.benchmarks.overhead import (
    AGAIN,
    BY_HAND,
    STUDENT,
    TEACHER,
    WARM_UP,
    Claim,
    Contest,
    environment,
    ratio,
    table,
    verdict,
)
from tests.benchmarks.workloads import KD_WEIGHT, TASK_WEIGHT, WORKLOADS, ByHand, Workload

TERM = "`Distillation` with a term of features"
CLAIMS = (
    Claim(AGAIN, (STUDENT,)),
    Claim(BY_HAND, (STUDENT, TEACHER)),
    Claim(TERM, (STUDENT, TEACHER), 1.03),
    Claim(TERM, (BY_HAND,)),
)
LAYERS = {
    "50 ms": ("module.conv5", "conv5"),
    "images": ("module.layer4", "layer4"),
    "text": ("model.transformer.h.3", "transformer.h.7"),
}


class ByHandFeatures(ByHand):
    """What one writes by hand: two hooks that stay, and the distance in the student's own loss."""

    def __init__(self, contest: "FeatureContest") -> None:
        super().__init__(contest.student, contest.teacher, contest.work)
        self.heard: dict[nn.Module, Tensor] = {}
        self.layers = contest.layers
        for layer in self.layers:
            layer.register_forward_hook(self.hear)

    def hear(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.acts:
            self.heard[module] = output[0] if isinstance(output, tuple) else output

    def loss(self, outputs: Any, batch: Any) -> Any:
        if not self.acts:
            return self.own(outputs, batch)
        with torch.no_grad():
            self.work.ask(self.teacher, batch)
        student, teacher = (self.heard.pop(layer) for layer in self.layers)
        term = F.mse_loss(student, teacher)
        return TASK_WEIGHT * self.own(outputs, batch) + KD_WEIGHT * term


class FeatureContest(Contest):
    """Trains and times each batch as the contestant whose turn it is.

    Args:
        work: Models and data.
        names: The student's and the teacher's layer.
    """

    def __init__(self, work: Workload, names: tuple[str, str]) -> None:
        self.names = names
        self.shape: Tensor | None = None
        super().__init__(work)

    def written(self) -> ByHand:
        """Return the distillation by hand."""
        self.layers = [
            model.get_submodule(name)
            for model, name in zip((self.student, self.teacher), self.names, strict=True)
        ]
        return ByHandFeatures(self)

    def contestants(self) -> dict[str, list[Algorithm]]:
        """Return the algorithms of each."""
        term = FeatureTerm(*self.names, loss=HiddenMSE(), weight=KD_WEIGHT)
        ours = Distillation(self.teacher, None, org_loss_weight=TASK_WEIGHT, feature_terms=[term])
        return {STUDENT: [], AGAIN: [], TEACHER: [], BY_HAND: [], TERM: [ours]}

    def ask(self, batch: Any) -> None:
        """Run the teacher, then the distance of two layers of its shape and its gradient."""
        super().ask(batch)
        if self.shape is None:
            handle = self.layers[1].register_forward_hook(self.see)
            super().ask(batch)
            handle.remove()
        student = self.shape.clone().requires_grad_()
        with torch.enable_grad():
            F.mse_loss(student, self.shape).backward()

    def see(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self.shape = output[0] if isinstance(output, tuple) else output


def without_head(work: Callable[[], Workload]) -> Workload:
    """Return a workload whose teacher's logits nobody asks for."""
    made = work()
    return replace(made, ask=lambda model, batch: model.transformer(input_ids=batch["input_ids"]))


def measure(name: str, minutes: float) -> dict[str, Any]:
    """Return the times and the peak memory of each contestant."""
    work = without_head(WORKLOADS[name]) if name == "text" else WORKLOADS[name]()
    contest = FeatureContest(work, LAYERS[name])
    names = list(contest.algorithms)
    contest.take_turns(names, 1)
    if abs(contest.losses[TERM] / contest.losses[BY_HAND] - 1) > 1e-5:
        raise SystemExit(f"unlike losses: {contest.losses}")
    start = time.perf_counter()
    contest.take_turns(names, WARM_UP)
    rounds = max(8, int(WARM_UP * 60 * minutes / (time.perf_counter() - start)))
    found = contest.take_turns(names, rounds)
    contest.peak(STUDENT)  # the first look sees what is allocated only once
    for each in names:
        found[each]["bytes"] = [contest.peak(each)]
    contest.trainer.close()
    print(f"\n### {work.title}\n\n{rounds} rounds.")
    return found


def show(found: dict[str, Any]) -> None:
    """Print a workload's tables."""
    table("ratio of CPU time", "median", "95 % of the median", "at most", "met", "peak memory")
    for claim in CLAIMS:
        cpu, memory = ratio((found, found), claim, "cpu"), ratio((found, found), claim, "bytes")
        limit, met = ("", "") if claim.limit is None else (claim.limit, verdict(cpu, claim.limit))
        cells = [str(claim), f"{cpu.median:.3f}", f"{cpu.low:.3f} to {cpu.high:.3f}"]
        print(
            f"| {' | '.join(map(str, [*cells, limit, met, f'{memory.median:.3f}']))} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="for each workload")
    parser.add_argument("--only", default=",".join(LAYERS), help="workloads, with commas")
    parser.add_argument("--json", default=None, help="where to keep every round's values")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    about = environment()
    print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results = {}
    for name in options.only.split(","):
        results[name] = measure(name, options.minutes)
        show(results[name])
    if options.json:
        Path(options.json).write_text(json.dumps({"environment": about, "results": results}))


if __name__ == "__main__":
    main()
