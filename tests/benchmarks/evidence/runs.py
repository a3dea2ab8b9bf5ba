"""One run of the evidence: a student in one setting through the real Trainer, and its numbers.

The data, the models and the training loop are the demo's (``composer_distill.demo``).
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from composer.algorithms import LabelSmoothing
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger
from composer.models import ComposerClassifier

from composer_distill import Distillation, KLDivergence
from composer_distill.demo.data import DigitSet, few_labels, load_split, without_labels
from composer_distill.demo.models import build_student, build_teacher, jitter
from composer_distill.demo.scores import answer, score
from composer_distill.demo.training import Plan, train

TRAIN_IMAGES, VALIDATION_IMAGES = 1000, 250
BATCH, TEACHER_RATE = 64, 3e-3
TEACHERS = 5
DIGITS = 6  # of the numbers kept

Measure = Callable[[ComposerClassifier, DigitSet], dict[str, float]]


@dataclass(frozen=True)
class Scale:
    """How long the students and the teachers train."""

    steps: int = 500
    teacher_steps: int = 1500


FAST = Scale(steps=16, teacher_steps=10)


@dataclass(frozen=True)
class Rates:
    """What was tuned on a validation split: see ``tuning``."""

    learning_rate: float
    weight_decay: float


# The best of tuning.py's grids, which a test compares with the committed results
ALONE_RATES = Rates(3e-2, 0.1)
DISTILLED_RATES = Rates(1e-2, 0.1)
FEW_RATES = Rates(1e-3, 0.3)
SMOOTHING = 0.02
TEMPERATURE = 2.0


@dataclass(frozen=True)
class Teacher:
    """A convolutional network trained with augmentation.

    Args:
        seed: Seed of its weights, its batches and its choice of labels.
        steps: Batches that it trains on.
        labels: How many labelled images it sees, as many of each digit if fewer than all.
        validation: Whether the last images of the training set are kept from it.
    """

    seed: int
    steps: int
    labels: int = TRAIN_IMAGES
    validation: bool = False

    @property
    def name(self) -> str:
        """What tables, files and results call it."""
        split = "-validation" if self.validation else ""
        return f"teacher-{self.seed}-steps-{self.steps}-labels-{self.labels}{split}"


@dataclass(frozen=True)
class Setting:
    """All that a student's run depends on, beside its seed.

    Args:
        rates: Peak of AdamW's cosine, and weight decay.
        steps: Batches to train on.
        smoothing: Of the labels; 0: none.
        labels: How many labelled images it sees, as many of each digit if fewer than all.
        unlabelled: Whether it sees all training images, and no label.
        absent: A digit whose images it does not see.
        validation: Whether it is scored on the last images of the training set, unseen by it.
        teachers: None of them: it trains alone.
        temperature: Of the distillation loss.
        kd_loss_weight: Weight of the distillation loss; the student's own loss has the rest of 1.
        start_dur: When distillation begins.
        end_dur: When distillation ends.
        n_teachers_to_sample: How many teachers answer a batch; None: all.
        combine: How several answers become one.
    """

    rates: Rates
    steps: int
    smoothing: float = 0.0
    labels: int = TRAIN_IMAGES
    unlabelled: bool = False
    absent: int | None = None
    validation: bool = False
    teachers: tuple[Teacher, ...] = ()
    temperature: float = TEMPERATURE
    kd_loss_weight: float = 0.9
    start_dur: float = 0.0
    end_dur: float = 1.0
    n_teachers_to_sample: int | None = None
    combine: Literal["logits", "probabilities"] = "probabilities"

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return asdict(self) | {"teachers": [teacher.name for teacher in self.teachers]}


@dataclass(eq=False)
class StepClock(Callback):
    """Reads the process's CPU clock and the wall clock at the end of every batch."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Read both clocks."""
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())


@dataclass(eq=False)
class WeightDecay(Callback):
    """Sets the weight decay of the demo's optimizer."""

    value: float

    def fit_start(self, state: State, logger: Logger) -> None:
        """Set it before the first batch."""
        for optimizer in state.optimizers:
            for group in optimizer.param_groups:
                group["weight_decay"] = self.value


def quality(student: ComposerClassifier, test: DigitSet) -> dict[str, float]:
    """Return accuracy, NLL and ECE on ``test``."""
    logits = answer(student, test)
    scores = score(logits, test.labels, logits)  # whom it agrees with is not asked here
    return {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}


def run(setting: Setting, seed: int, folder: Path, measure: Measure = quality) -> dict[str, Any]:
    """Train one student and return what was measured.

    Its initial weights and the order of its images depend on ``seed`` alone.
    """
    train_set, test_set = split(setting.validation)
    clock = StepClock()
    student = build_student(seed)
    plan = Plan(
        choose(train_set, setting, seed), setting.steps, BATCH, setting.rates.learning_rate, seed
    )
    algorithms = distil(setting, folder)
    if setting.smoothing:
        algorithms.append(LabelSmoothing(setting.smoothing))
    cpu = time.process_time()
    wall = train(
        student,
        plan,
        algorithms=algorithms,
        callbacks=[clock, WeightDecay(setting.rates.weight_decay)],
    )
    numbers = {
        "wall_seconds": wall,
        "cpu_seconds": time.process_time() - cpu,
        "step_wall_ms": 1000 * median_step(clock.wall),
        "step_cpu_ms": 1000 * median_step(clock.cpu),
        **measure(student, test_set),
    }
    return {"date": today(), **{k: round(v, DIGITS) for k, v in numbers.items()}}


def split(validation: bool) -> tuple[DigitSet, DigitSet]:
    """Return what is trained on and what is scored on."""
    train_set, test_set = load_split(TRAIN_IMAGES)
    if not validation:
        return train_set, test_set
    border, indices = TRAIN_IMAGES - VALIDATION_IMAGES, torch.arange(TRAIN_IMAGES)
    return train_set.subset(indices[:border]), train_set.subset(indices[border:])


def choose(data: DigitSet, setting: Setting, seed: int) -> DigitSet:
    """Return the images of ``data`` that the student sees, with or without labels."""
    if setting.labels < TRAIN_IMAGES:
        data = few_labels(data, setting.labels // 10, seed)
    if setting.absent is not None:
        data = data.subset((data.labels != setting.absent).nonzero().flatten())
    return without_labels(data.images) if setting.unlabelled else data


def distil(setting: Setting, folder: Path) -> list[Algorithm]:
    """Return the algorithm that distils from the setting's teachers, if it has any."""
    if not setting.teachers:
        return []
    return [
        Distillation(
            teachers={str(teach(each, folder)): build_teacher() for each in setting.teachers},
            kd_loss_fn=KLDivergence(temperature=setting.temperature),
            kd_loss_weight=setting.kd_loss_weight,
            org_loss_weight=1.0 - setting.kd_loss_weight,
            start_dur=setting.start_dur,
            end_dur=setting.end_dur,
            n_teachers_to_sample=setting.n_teachers_to_sample,
            combine=setting.combine,
            telemetry=False,
        )
    ]


def teach(teacher: Teacher, folder: Path) -> Path:
    """Return the teacher's Composer checkpoint in ``folder``, trained now if it is not there."""
    checkpoint = folder / "teachers" / f"{teacher.name}.pt"
    record = checkpoint.with_suffix(".json")
    if record.exists():
        return checkpoint
    data, test = split(teacher.validation)
    if teacher.labels < TRAIN_IMAGES:
        data = few_labels(data, teacher.labels // 10, teacher.seed)
    model = build_teacher(teacher.seed)
    plan = Plan(data, teacher.steps, BATCH, TEACHER_RATE, teacher.seed, jitter)
    cpu = time.process_time()
    wall = train(model, plan, checkpoint=checkpoint)
    numbers = {"wall_seconds": wall, "cpu_seconds": time.process_time() - cpu}
    numbers |= quality(model, test)
    record.write_text(json.dumps({k: round(v, DIGITS) for k, v in numbers.items()}))
    return checkpoint


def teachers_of(seed: int, scale: Scale, count: int = 1) -> tuple[Teacher, ...]:
    """Return ``count`` good teachers: each seed begins with its own, so that all count alike."""
    seeds = [(seed - 1 + i) % TEACHERS + 1 for i in range(count)]
    return tuple(Teacher(each, scale.teacher_steps) for each in seeds)


def median_step(times: list[float]) -> float:
    """Return the median time from one batch's end to the next one's."""
    return statistics.median(after - before for before, after in pairwise(times))


def today() -> str:
    """Return the date in UTC."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%d")
