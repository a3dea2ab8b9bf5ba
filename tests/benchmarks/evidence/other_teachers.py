"""Teachers that are the student itself, that know a part each, or that are often wrong.

``python -m tests.benchmarks.evidence.other_teachers --output DIR``
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from composer.core import Algorithm
from composer.models import ComposerClassifier
from matplotlib.figure import Figure
from torch import Tensor, nn

from composer_distill import (
    AdapterFreeTeacher,
    Distillation,
    EMATeacher,
    KLDivergence,
    Snapshot,
    teacher_confident,
    teacher_correct,
)
from composer_distill import Teacher as Taught
from composer_distill.demo.data import DigitSet
from composer_distill.demo.models import build_student, build_teacher, jitter
from composer_distill.demo.training import Plan, train
from tests.benchmarks.evidence import runs
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, panels, title
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    BATCH,
    DIGITS,
    DISTILLED_RATES,
    Scale,
    WeightDecay,
    quality,
    split,
    today,
)
from tests.benchmarks.evidence.tables import compare, rows_of, values

PLAIN, BORN_AGAIN = "alone", "born again"
HALVES, ROUTED, AVERAGED = "a teacher for each half: ", "routed", "averaged"
POOR, POOR_STEPS = "poor teacher: ", 30
ADAPTED, FREE, HELD = "adapters: ", "alone", "held by the base"
NEW_IMAGES = 100  # turned by 90 degrees, which adapters learn from


@dataclass(frozen=True)
class HalfTeacher(runs.Teacher):
    """A teacher that has seen five of the digits alone."""

    first: int = 0

    @property
    def name(self) -> str:
        """What tables, files and results call it."""
        return f"{super().name}-digits-{self.first}-{self.first + 4}"

    def knows(self, labels: Tensor) -> Tensor:
        """Return which labels are of its digits."""
        return (labels >= self.first) & (labels < self.first + 5)


@dataclass(frozen=True)
class Setting(runs.Setting):
    """A setting of the evidence, and who teaches.

    Args:
        way: What the row is called.
    """

    way: str = PLAIN


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, taught by itself, by halves, by a poor teacher, and adapted."""
    alone = Setting(ALONE_RATES, scale.steps)
    taught = replace(alone, rates=DISTILLED_RATES)
    halves = tuple(HalfTeacher(seed, scale.teacher_steps // 3, first=first) for first in (0, 5))
    poor = (runs.Teacher(seed, min(POOR_STEPS, scale.teacher_steps)),)
    of_halves = replace(taught, teachers=halves)
    of_poor = replace(taught, teachers=poor)
    found = {
        PLAIN: alone,
        "EMA of itself": alone,
        "snapshot at half": alone,
        BORN_AGAIN: taught,
        HALVES + ROUTED: of_halves,
        HALVES + AVERAGED: of_halves,
        POOR + "all answers": of_poor,
        POOR + "where right": of_poor,
        POOR + "where above 0.5": of_poor,
        ADAPTED + FREE: alone,
        ADAPTED + HELD: alone,
    }
    return {way: replace(setting, way=way) for way, setting in found.items()}


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    if setting.way.startswith(ADAPTED):
        return adapt(setting, seed)
    student = build_student(seed)
    fit(student, split(False)[0], setting, seed, taught_by(setting, seed, folder))
    numbers = quality(student, split(False)[1])
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def fit(
    student: ComposerClassifier,
    data: DigitSet,
    setting: runs.Setting,
    seed: int,
    algorithms: list[Algorithm],
) -> None:
    """Train a student as all of the evidence does."""
    plan = Plan(data, setting.steps, BATCH, setting.rates.learning_rate, seed)
    decay = WeightDecay(setting.rates.weight_decay)
    train(student, plan, algorithms=algorithms, callbacks=[decay])


def taught_by(setting: Setting, seed: int, folder: Path) -> list[Algorithm]:
    """Return the algorithm of a row, if it has one."""
    kl, way = KLDivergence(temperature=setting.temperature), setting.way
    if way == PLAIN:
        return []
    if way.startswith("EMA"):
        return [Distillation(EMATeacher(decay=0.99, warmup=10), kl, 1.0, 1.0, telemetry=False)]
    if way.startswith("snapshot"):
        return [Distillation(Snapshot(start_dur=0.5), kl, 0.5, 0.5, telemetry=False)]
    if way == BORN_AGAIN:
        former = build_student(seed + 100)
        fit(former, split(False)[0], replace(setting, rates=ALONE_RATES), seed + 100, [])
        return [Distillation(former, kl, 0.9, 0.1, telemetry=False)]
    if way.startswith(POOR):
        judges = {"where right": teacher_correct, "where above 0.5": teacher_confident(0.5)}
        (poor,) = setting.teachers
        teacher = {str(runs.teach(poor, folder)): build_teacher()}
        mask_fn = judges.get(way.removeprefix(POOR))
        return [Distillation(teacher, kl, 0.9, 0.1, mask_fn=mask_fn, telemetry=False)]
    return [by_halves(setting, folder, kl, routed=way.endswith(ROUTED))]


def by_halves(setting: Setting, folder: Path, kl: KLDivergence, *, routed: bool) -> Distillation:
    """Return the distillation from teachers of five digits each."""
    teachers = []
    for each in setting.teachers:
        if not isinstance(each, HalfTeacher):
            raise TypeError(f"{each} is no teacher of a half")
        route = (lambda batch, half=each: half.knows(batch[1])) if routed else None
        checkpoint = teach_half(each, folder)
        teachers.append(Taught(build_teacher(), checkpoint=checkpoint, route=route))
    return Distillation(teachers, kl, 0.9, 0.1, combine="probabilities", telemetry=False)


def teach_half(teacher: HalfTeacher, folder: Path) -> Path:
    """Return the checkpoint of a teacher of five digits, trained now if it is not there."""
    checkpoint = folder / "teachers" / f"{teacher.name}.pt"
    record = checkpoint.with_suffix(".json")
    if not record.exists():
        data, test = (
            each.subset(teacher.knows(each.labels).nonzero()[:, 0]) for each in split(False)
        )
        model = build_teacher(teacher.seed)
        plan = Plan(data, teacher.steps, BATCH, runs.TEACHER_RATE, teacher.seed, jitter)
        train(model, plan, checkpoint=checkpoint)
        numbers = {name: round(value, DIGITS) for name, value in quality(model, test).items()}
        record.write_text(json.dumps(numbers))
    return checkpoint


class Adapted(nn.Module):
    """A linear layer and a low-rank adapter beside it, switched off as PEFT's layers are."""

    adapter_layer_names = ("down", "up")

    def __init__(self, base: nn.Linear, rank: int = 8) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)
        self._disable_adapters = False

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what the layer gives, with the adapter's part unless it is switched off."""
        outputs = self.base_layer(inputs)
        return outputs if self._disable_adapters else outputs + self.up(self.down(inputs))


def adapt(setting: Setting, seed: int) -> dict[str, Any]:
    """Train a student, then adapters on few turned images; measure on turned and on upright ones.

    Where the base holds it, it answers the same turned images, as a penalty on leaving it would.
    """
    data, test = split(False)
    student = build_student(seed)
    fit(student, data, setting, seed, [])
    network: Any = student.module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for place in (1, 3, 5):
            network[place] = Adapted(network[place])
    few = data.subset(torch.arange(NEW_IMAGES))
    half = setting.steps // 2
    algorithms: list[Algorithm] = []
    if setting.way.endswith(HELD):
        kl = KLDivergence(setting.temperature)
        algorithms = [Distillation(AdapterFreeTeacher(), kl, 0.5, 1.0, telemetry=False)]
    fit(student, turned(few), replace(setting, steps=half), seed, algorithms)
    after, before = quality(student, turned(test)), quality(student, test)
    numbers = {**after, **{f"upright_{name}": value for name, value in before.items()}}
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def turned(data: DigitSet) -> DigitSet:
    """Return the images, turned by 90 degrees."""
    return DigitSet(data.images.rot90(1, (2, 3)).contiguous(), data.labels)


def show(document: Document) -> str:
    """Return the rows beside the student alone, and the adapted ones beside each other."""

    def within(prefixes: tuple[str, ...]) -> Iterator[str]:
        yield from (row for row in rows_of(document) if row.startswith(prefixes))

    others = [row for row in rows_of(document) if not row.startswith((ADAPTED, POOR, HALVES))]
    metrics = ("accuracy", "nll", "ece")
    return "\n\n".join(
        [
            "The student as its own teacher:",
            compare(document, PLAIN, metrics, rows=others),
            "Two teachers of five digits each, beside their mean:",
            compare(document, HALVES + AVERAGED, metrics, rows=[PLAIN, *within((HALVES,))]),
            "A poor teacher, beside all of its answers:",
            compare(document, POOR + "all answers", metrics, rows=[PLAIN, *within((POOR,))]),
            "Adapters on turned images (`accuracy`, `NLL`), and what is left on upright ones:",
            compare(
                document,
                ADAPTED + FREE,
                ("accuracy", "nll", "upright_accuracy", "upright_nll"),
                rows=list(within((ADAPTED,))),
            ),
        ]
    )


def draw(document: Document) -> Figure:
    """Draw each row's test NLL and accuracy."""
    figure, axes = panels(2, width=5.4)
    names = [row for row in rows_of(document) if not row.startswith(ADAPTED) and row != PLAIN]
    for each, metric in zip(axes, ("accuracy", "nll"), strict=True):
        for place, row in enumerate(reversed(names)):
            found = values(document, row, metric)
            each.plot(found, [place] * len(found), ".", color=DISTILLED, alpha=0.35)
            each.plot(mean(found), place, "o", color=DISTILLED)
        each.axvline(mean(values(document, PLAIN, metric)), color=ALONE, linestyle="--")
        told = list(reversed(names)) if metric == "accuracy" else [""] * len(names)
        each.set_yticks(range(len(names)), told)
        title(each, metric)
    return figure


EXPERIMENT = Experiment("other_teachers", rows, show, draw, run=run)

if __name__ == "__main__":
    main(EXPERIMENT)
