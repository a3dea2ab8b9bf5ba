"""A shallow residual student that takes the blocks of its deep teacher which have its names.

``python -m tests.benchmarks.evidence.copied_blocks --output DIR``

Images, networks and augmentation are those of ``feature_images``.
"""

import json
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm
from composer.models import ComposerClassifier
from matplotlib.figure import Figure

from composer_distill import Distillation, KLDivergence, copy_matching
from composer_distill.demo.data import DigitSet
from composer_distill.demo.training import Plan, train
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.fashion_runs import quality
from tests.benchmarks.evidence.feature_images import (
    BATCH,
    FASHION,
    load_images,
    make_model,
    moved,
    read,
)
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, dots, panels, title
from tests.benchmarks.evidence.runs import DIGITS, today
from tests.benchmarks.evidence.tables import (
    compare,
    level,
    rows_of,
    table,
    teachers_mean,
)

WIDTH, TEACHER_BLOCKS, TEACHER_RATE = 8, 3, 1e-2
HELD_OUT = 2000  # images behind those trained on, seen by nobody, for tuning
SHORT, LONG = "short", "long"
KINDS = ("random, alone", "random, distilled", "copied, alone", "copied, distilled")
GRID = (3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEEDS, TUNING, UNTRAINED = 2, "tuning, ", "copied, untrained"
# The best of the grid's rows, which a test compares with them
RATES = {f"{length}: {kind}": 1e-2 for length in (SHORT, LONG) for kind in KINDS}


@dataclass(frozen=True)
class Scale:
    """How long students and teachers train, and on how many images; none: on digits."""

    short: int = 50
    long: int = 150
    teacher_steps: int = 800
    images: int = 3000


@dataclass(frozen=True)
class Setting:
    """All that a student's run depends on, beside its seed.

    Args:
        images: How many images it trains on; none: on digits.
        steps: How many batches it trains on.
        rate: Peak of AdamW's cosine.
        teacher: Seed and batches of its teacher's training.
        copied: Whether it takes the teacher's weights that have its names and shapes.
        distilled: Whether it learns from the teacher's logits too.
        validation: Whether it is scored on the images held out for tuning.
    """

    images: int
    steps: int
    rate: float
    teacher: tuple[int, int]
    copied: bool
    distilled: bool
    validation: bool = False

    @property
    def teacher_name(self) -> str:
        """What files call the teacher."""
        seed, steps = self.teacher
        return f"resnet-{TEACHER_BLOCKS}-blocks-{seed}-images-{self.images}-steps-{steps}"

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        used = self.copied or self.distilled
        return asdict(self) | {"teachers": [self.teacher_name] if used else []}


def rows(seed: int, scale: Scale) -> Rows:
    """Return the tuning with the first seeds, then all students of both lengths."""
    found = {}
    if seed <= TUNING_SEEDS:
        for name in RATES:
            for rate in GRID:
                found[f"{TUNING}{name}: {rate:g}"] = student(name, seed, scale, rate, True)
    for name, rate in RATES.items():
        found[name] = student(name, seed, scale, rate)
    teacher = (seed, scale.teacher_steps)
    return {**found, UNTRAINED: Setting(scale.images, 0, 0.0, teacher, True, False)}


def student(name: str, seed: int, scale: Scale, rate: float, validation: bool = False) -> Setting:
    """Return the student of a name such as ``'short: random, alone'``."""
    length, _, kind = name.partition(": ")
    origin, _, how = kind.partition(", ")
    return Setting(
        images=scale.images,
        steps=scale.short if length == SHORT else scale.long,
        rate=rate,
        teacher=(seed, scale.teacher_steps),
        copied=origin == "copied",
        distilled=how == "distilled",
        validation=validation,
    )


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    data, scored = split(setting.images, setting.validation)
    model = make_model(WIDTH, 1, seed)
    algorithms: list[Algorithm] = []
    if setting.copied:
        copy_matching(model, taught(setting, folder))
    if setting.distilled:
        teacher, loss = taught(setting, folder), KLDivergence(temperature=4.0)
        algorithms.append(Distillation(teacher, loss, 0.9, 0.1, telemetry=False))
    begin = time.process_time()
    if setting.steps:
        plan = Plan(data, setting.steps, BATCH, setting.rate, seed, moved)
        train(model, plan, algorithms=algorithms)
    numbers = {"cpu_seconds": time.process_time() - begin, **quality(model, scored)}
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


@cache
def split(images: int, validation: bool = False) -> tuple[DigitSet, DigitSet]:
    """Return what is trained on, and what is scored: test images or those held out."""
    data, test = load_images(images)
    if not validation:
        return data, test
    if not images:  # digits, where nothing is tuned
        return data, data
    return data, read("train").subset(torch.arange(images, images + HELD_OUT))


def taught(setting: Setting, folder: Path) -> ComposerClassifier:
    """Return the teacher, trained now if it is not there."""
    seed, steps = setting.teacher
    model = make_model(WIDTH, TEACHER_BLOCKS, seed)
    weights = folder / "teachers" / f"{setting.teacher_name}.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model
    data, test = split(setting.images)
    begin = time.process_time()
    train(model, Plan(data, steps, BATCH, TEACHER_RATE, seed, moved))
    numbers = {"cpu_seconds": time.process_time() - begin, **quality(model, test)}
    record = {name: round(value, DIGITS) for name, value in numbers.items()}
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps(record))
    torch.save(model.state_dict(), weights)
    return model


def missing(scale: Scale) -> str | None:
    """Return what to install where the data is missing."""
    if FASHION.exists() or not scale.images:
        return None
    return f"{FASHION} is not there. apt install dataset-fashion-mnist"


def of_length(length: str) -> list[str]:
    """Return the students of a length."""
    return [f"{length}: {kind}" for kind in KINDS]


def show(document: Document) -> str:
    """Return both lengths beside the random student alone, what a teacher adds, and the tuning."""
    teacher = {key: teachers_mean(document, UNTRAINED, key) for key in ("accuracy", "nll")}
    cpu = {"CPU seconds": lambda row: level(document, row, "cpu_seconds", 1)}
    metrics = ("accuracy", "nll", "ece")
    copied = [f"{length}: {kind}" for length in (SHORT, LONG) for kind in KINDS[2:]]
    told = [f"A teacher has {teacher['accuracy']:.2f} % and {teacher['nll']:.3f} nats on average."]
    for length, more in ((SHORT, [UNTRAINED]), (LONG, [])):
        beside, shown = f"{length}: {KINDS[0]}", [*of_length(length), *more]
        told += [f"The {length} training:", compare(document, beside, metrics, cpu, shown)]
    tuned = [
        [row.removeprefix(TUNING), *(level(document, row, name) for name in ("accuracy", "nll"))]
        for row in rows_of(document)
        if row.startswith(TUNING)
    ]
    return "\n\n".join(
        [
            *told,
            "What the teacher adds to copied blocks:",
            compare(document, lambda row: row.partition(":")[0] + ": copied, alone", rows=copied),
            "The tuning, on the images held out, two seeds:",
            table(["student: rate", "accuracy %", "NLL"], tuned),
        ]
    )


def draw(document: Document) -> Figure:
    """Draw the students' accuracy and NLL, of both lengths, and the teachers' means."""
    figure, axes = panels(2, width=5.4)
    names = [UNTRAINED, *of_length(SHORT), *of_length(LONG)]
    colours = {row: OTHER if row == UNTRAINED else ALONE for row in names}
    colours |= {row: DISTILLED for row in names if row.endswith("distilled")}
    for each, metric in zip(axes, ("accuracy", "nll"), strict=True):
        trained = {row: row for row in names if row != UNTRAINED}
        dots(each, document, trained, metric, colours)
        height = teachers_mean(document, UNTRAINED, metric)
        each.axvline(height, color=GREY, linestyle="--", label="teachers, mean")
        title(each, metric)
    axes[0].legend(frameon=False, fontsize=8, loc="lower left")
    axes[1].tick_params(labelleft=False)
    return figure


EXPERIMENT = Experiment(
    "copied_blocks",
    rows,
    show,
    draw,
    run=run,
    scales=(Scale(), Scale(2, 4, 6, 0)),
    packages=("mosaicml", "torch", "numpy"),
    missing=lambda scale, folder: missing(scale),
)

if __name__ == "__main__":
    main(EXPERIMENT)
