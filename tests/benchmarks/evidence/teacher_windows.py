"""A large teacher and its assistant, each in a window or with a weight of its own.

``python -m tests.benchmarks.evidence.teacher_windows --output DIR``
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Algorithm
from composer.models import ComposerClassifier
from composer.optim import LinearScheduler
from matplotlib.figure import Figure
from torch import nn
from torchmetrics import MetricCollection

from composer_distill import Distillation, KLDivergence
from composer_distill import Teacher as Taught
from composer_distill.demo.data import CLASSES
from composer_distill.demo.models import build_student, build_teacher, jitter
from composer_distill.demo.training import Plan, train
from tests.benchmarks.evidence import runs
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.other_teachers import PLAIN, Setting
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, OTHER, dots, panels, title
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    BATCH,
    DIGITS,
    DISTILLED_RATES,
    TEACHER_RATE,
    TEMPERATURE,
    Scale,
    StepClock,
    WeightDecay,
    quality,
    split,
    teachers_of,
    today,
)
from tests.benchmarks.evidence.tables import compare, level, rows_of, teachers_mean

LARGE, SMALL = "large", "assistant"
BOTH, DRAWN = "mean of both", "one of both drawn"
FORWARDS, BACKWARDS = "assistant, then large", "large, then assistant"
SCHEDULED = "assistant falling, large rising"
WIDTH = 8  # of the assistant's first layer; the large teacher's is 16
KD_WEIGHT = 0.9


@dataclass(frozen=True)
class Assistant(runs.Teacher):
    """A network of half the large teacher's channels, distilled from it: arXiv 1902.03393."""

    @property
    def name(self) -> str:
        """What tables, files and results call it."""
        return super().name.replace("teacher", "assistant")


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, with either teacher, and with both in several ways."""
    (large,) = teachers_of(seed, scale)
    small = Assistant(large.seed, large.steps)
    teachers = {LARGE: (large,), SMALL: (small,)}
    found = {PLAIN: Setting(ALONE_RATES, scale.steps)}
    for way in (LARGE, SMALL, BOTH, DRAWN, FORWARDS, BACKWARDS, SCHEDULED):
        both = teachers.get(way, (small, large))
        found[way] = Setting(DISTILLED_RATES, scale.steps, teachers=both, way=way)
    return found


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    data, test = split(False)
    student, clock = build_student(seed), StepClock()
    plan = Plan(data, setting.steps, BATCH, setting.rates.learning_rate, seed)
    callbacks = [clock, WeightDecay(setting.rates.weight_decay)]
    train(student, plan, algorithms=distil(setting, folder), callbacks=callbacks)
    numbers = {**step_means(clock.cpu), **quality(student, test)}
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def step_means(clock: list[float]) -> dict[str, float]:
    """Return the mean milliseconds of a step, of all of training and of either half.

    Means, since steps of unlike teachers take unlike times; the first batch is left out.
    """
    middle = len(clock) // 2
    parts = {"": clock, "first_half_": clock[:middle], "second_half_": clock[middle:]}
    return {
        f"{part}step_cpu_ms": 1000 * (times[-1] - times[0]) / (len(times) - 1)
        for part, times in parts.items()
    }


def distil(setting: Setting, folder: Path) -> list[Algorithm]:
    """Return the algorithm of a row, if it has one."""
    if not setting.teachers:
        return []
    teachers = [
        Taught(model_of(each), checkpoint=taught(each, folder), **options_of(each, setting.way))
        for each in setting.teachers
    ]
    return [
        Distillation(
            teachers,
            KLDivergence(temperature=setting.temperature),
            kd_loss_weight=setting.kd_loss_weight,
            org_loss_weight=1.0 - setting.kd_loss_weight,
            n_teachers_to_sample=1 if setting.way == DRAWN else None,
            combine=setting.combine,
            telemetry=False,
        )
    ]


def options_of(teacher: runs.Teacher, way: str) -> dict[str, Any]:
    """Return when a teacher answers, and how much it counts."""
    is_small = isinstance(teacher, Assistant)
    if way in (FORWARDS, BACKWARDS):
        is_first = is_small == (way == FORWARDS)
        return {"end_dur": 0.5} if is_first else {"start_dur": 0.5}
    if way == SCHEDULED:
        return {"weight": LinearScheduler(float(is_small), float(not is_small))}
    return {}


def model_of(teacher: runs.Teacher) -> ComposerClassifier:
    """Return an untrained network of a teacher's kind."""
    build = build_assistant if isinstance(teacher, Assistant) else build_teacher
    return build(teacher.seed)


def build_assistant(seed: int) -> ComposerClassifier:
    """Return the demo's convolutional network with half the channels, initialised by ``seed``."""
    convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = nn.Sequential(
            convolution(1, WIDTH),
            nn.ReLU(),
            convolution(WIDTH, 2 * WIDTH),
            nn.ReLU(),
            nn.MaxPool2d(2),
            convolution(2 * WIDTH, 4 * WIDTH),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * WIDTH, CLASSES),
        )
    nothing = MetricCollection([])
    network = network.to(memory_format=torch.channels_last)
    return ComposerClassifier(network, CLASSES, train_metrics=nothing, val_metrics=nothing)


def taught(teacher: runs.Teacher, folder: Path) -> Path:
    """Return a teacher's checkpoint, trained now if it is not there.

    The assistant learns from the large teacher, on images that are jittered as that one's were.
    """
    if not isinstance(teacher, Assistant):
        return runs.teach(teacher, folder)
    checkpoint = folder / "teachers" / f"{teacher.name}.pt"
    record = checkpoint.with_suffix(".json")
    if record.exists():
        return checkpoint
    large = runs.Teacher(teacher.seed, teacher.steps)
    term = Distillation(
        {str(runs.teach(large, folder)): build_teacher()},
        KLDivergence(temperature=TEMPERATURE),
        kd_loss_weight=KD_WEIGHT,
        org_loss_weight=1.0 - KD_WEIGHT,
        telemetry=False,
    )
    data, test = split(False)
    model, cpu = build_assistant(teacher.seed), time.process_time()
    plan = Plan(data, teacher.steps, BATCH, TEACHER_RATE, teacher.seed, jitter)
    train(model, plan, algorithms=[term], checkpoint=checkpoint)
    numbers = {"cpu_seconds": time.process_time() - cpu, **quality(model, test)}
    record.write_text(json.dumps({name: round(value, DIGITS) for name, value in numbers.items()}))
    return checkpoint


def show(document: Document) -> str:
    """Return all rows beside the student alone, beside the large teacher, and the ways of both."""
    told = [
        f"{which}: {teachers_mean(document, row, 'accuracy'):.2f} %, "
        f"{teachers_mean(document, row, 'nll'):.3f} nats, "
        f"{teachers_mean(document, row, 'cpu_seconds'):.0f} CPU seconds of training"
        for which, row in (("Large teacher", LARGE), ("assistant", SMALL))
    ]
    times = {
        f"CPU ms a step, {part}": partial(level, document, metric=f"{key}step_cpu_ms", places=1)
        for part, key in (
            ("all", ""),
            ("first half", "first_half_"),
            ("second half", "second_half_"),
        )
    }
    metrics = ("accuracy", "nll", "ece")
    of_both = [row for row in rows_of(document) if row not in (PLAIN, LARGE, SMALL)]
    return "\n\n".join(
        [
            f"{'; '.join(told)}, on the average.",
            compare(document, PLAIN, metrics, times),
            "The same beside the large teacher throughout:",
            compare(document, LARGE, metrics, rows=[r for r in rows_of(document) if r != PLAIN]),
            "Ways to have both, beside one of both drawn for each batch:",
            compare(document, DRAWN, metrics, rows=of_both),
        ]
    )


def draw(document: Document) -> Figure:
    """Draw each row's accuracy, NLL and time of a step."""
    figure, axes = panels(3, width=4.2)
    names = rows_of(document)
    colours = dict.fromkeys(names, OTHER) | {
        PLAIN: ALONE,
        LARGE: DISTILLED,
        SMALL: DISTILLED,
    }
    for each, metric in zip(axes, ("accuracy", "nll", "step_cpu_ms"), strict=True):
        dots(each, document, {row: row for row in names}, metric, colours)
        title(each, metric)
    axes[2].set_title("CPU ms a step (lower is better)", fontsize=10)
    axes[2].set_xlim(left=0)
    for each in axes[1:]:
        each.tick_params(labelleft=False)
    return figure


EXPERIMENT = Experiment("teacher_windows", rows, show, draw, run=run)

if __name__ == "__main__":
    main(EXPERIMENT)
