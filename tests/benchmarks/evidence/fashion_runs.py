"""One run on Fashion-MNIST: data, networks, teachers and their kept answers."""

import gzip
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.algorithms import LabelSmoothing
from composer.core import Algorithm
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torchmetrics import MetricCollection

from composer_distill import (
    CachedTeacher,
    Distillation,
    FeatureTerm,
    KLDivergence,
    cache_teacher,
)
from composer_distill.demo.data import CLASSES, DigitSet, few_labels, without_labels
from composer_distill.demo.scores import score
from composer_distill.demo.training import Plan, train
from composer_distill.losses import AttentionTransfer, SimilarityPreserving
from tests.benchmarks.evidence.runs import DIGITS, StepClock, WeightDecay, median_step, today

FOLDER = Path("/usr/share/datasets/fashion-mnist")
HELD_OUT = 5_000  # the last images of the training part, seen by nobody, for tuning
BATCH, TEACHER_RATE, WEIGHT_DECAY = 128, 3e-3, 0.05
TEACHER_WIDTH, TEMPERATURE, KD_WEIGHT = 16, 4.0, 0.9
FEATURES = {
    "AT": (["module.0", "module.1", "module.2"], AttentionTransfer(), 1000.0),
    "SP": ("module.2", SimilarityPreserving(), 3000.0),
}


@dataclass(frozen=True)
class Scale:
    """How long students and teachers train, on how many images, and how many labels are few."""

    steps: int = 450
    teacher_steps: int = 1290
    images: int = 60_000 - HELD_OUT
    few: int = 550


FAST = Scale(steps=8, teacher_steps=8, images=512, few=100)


@dataclass(frozen=True)
class Teacher:
    """A convolutional network of full resolution.

    Args:
        seed: Of its weights, its batches and its choice of labels.
        steps: Batches that it trains on.
        images: How many there are.
        labels: How many labelled images it sees.
    """

    seed: int
    steps: int
    images: int
    labels: int

    @property
    def name(self) -> str:
        """What files and results call it."""
        return f"fashion-{self.seed}-steps-{self.steps}-labels-{self.labels}-of-{self.images}"


@dataclass(frozen=True)
class Setting:
    """All that a student's run depends on, beside its seed.

    Args:
        width: Channels of its first layer.
        rate: Peak of AdamW's cosine.
        steps: Batches to train on.
        images: How many there are to train on.
        labels: How many of them have labels.
        unlabelled: Whether it sees all images, and no label.
        smoothing: Of the labels; 0: none.
        validation: Whether it is scored on the images held out for tuning.
        teachers: None of them: it trains alone.
        cached: Whether their answers were kept before.
        feature: What is compared beside the logits: ``"AT"``, ``"SP"`` or nothing.
        end_dur: When distillation ends.
        n_teachers_to_sample: How many teachers answer a batch; None: all.
    """

    width: int
    rate: float
    steps: int
    images: int
    labels: int
    unlabelled: bool = False
    smoothing: float = 0.0
    validation: bool = False
    teachers: tuple[Teacher, ...] = ()
    cached: bool = False
    feature: str = ""
    end_dur: float = 1.0
    n_teachers_to_sample: int | None = None

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return asdict(self) | {"teachers": [teacher.name for teacher in self.teachers]}


def missing() -> str | None:
    """Return what to install where the data is missing."""
    if FOLDER.exists():
        return None
    return f"Fashion-MNIST is read from {FOLDER}: install Debian's package dataset-fashion-mnist."


@cache
def load(part: str) -> DigitSet:
    """Return the images of ``part``, ``"train"`` or ``"t10k"``, with their labels."""

    def read(name: str, header: int) -> Tensor:
        with gzip.open(FOLDER / f"{part}-{name}-ubyte.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=header).copy())

    images = read("images-idx3", 16).view(-1, 1, 28, 28).float() / 255
    return DigitSet(images, read("labels-idx1", 8).long())


def training_part(images: int) -> DigitSet:
    """Return the first images of those that may be trained on."""
    return load("train").subset(torch.arange(images))


def scored_part(images: int, validation: bool = False) -> DigitSet:
    """Return the test images, or those held out for tuning, no more than there are to train on."""
    first = 60_000 - HELD_OUT if validation else 0
    data = load("train" if validation else "t10k")
    return data.subset(torch.arange(first, min(first + images, len(data))))


def build_student(width: int, seed: int) -> ComposerClassifier:
    """Return three convolutions of stride 2 and a linear layer, initialised by ``seed``."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())

    return _network(width, seed, stage)


def build_teacher(seed: int) -> ComposerClassifier:
    """Return three convolutions of full resolution with pooling, and a linear layer."""

    def stage(inputs: int, outputs: int) -> nn.Module:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        pooling = nn.MaxPool2d(2, ceil_mode=True)
        return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(), pooling)

    return _network(TEACHER_WIDTH, seed, stage)


def _network(width: int, seed: int, stage: Callable[[int, int], nn.Module]) -> ComposerClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = [stage(1, width), stage(width, 2 * width), stage(2 * width, 4 * width)]
        head = nn.Sequential(nn.Flatten(), nn.Linear(4 * width * 16, CLASSES))
        network: Any = nn.Sequential(*stages, head)
    nothing = MetricCollection([])
    return ComposerClassifier(
        network.to(memory_format=torch.channels_last), CLASSES, nothing, nothing
    )


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    student, clock = build_student(setting.width, seed), StepClock()
    data = choose(setting.images, setting.labels, seed)
    if setting.unlabelled:
        data = without_labels(training_part(setting.images).images)
    algorithms = distil(setting, folder)
    if setting.smoothing:
        algorithms.append(LabelSmoothing(setting.smoothing))
    plan = Plan(data, setting.steps, BATCH, setting.rate, seed)
    cpu = time.process_time()
    wall = train(student, plan, algorithms=algorithms, callbacks=[clock, WeightDecay(WEIGHT_DECAY)])
    numbers = {
        "wall_seconds": wall,
        "cpu_seconds": time.process_time() - cpu,
        "step_cpu_ms": 1000 * median_step(clock.cpu),
        **quality(student, scored_part(setting.images, setting.validation)),
    }
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def choose(images: int, labels: int, seed: int) -> DigitSet:
    """Return the labelled images, as many of each class where they are few."""
    data = training_part(images)
    return few_labels(data, labels // CLASSES, seed) if labels < images else data


def distil(setting: Setting, folder: Path) -> list[Algorithm]:
    """Return the algorithm that distils from the setting's teachers, if it has any."""
    if not setting.teachers:
        return []
    weight = 1.0 if setting.unlabelled else KD_WEIGHT
    terms = []
    if setting.feature:
        layers, loss, factor = FEATURES[setting.feature]
        terms = [FeatureTerm(layers, loss=loss, weight=factor)]
    places = [taught(teacher, folder) for teacher in setting.teachers]
    teachers = (
        [CachedTeacher(answers) for _, answers in places]
        if setting.cached
        else {str(checkpoint): build_teacher(0) for checkpoint, _ in places}
    )
    return [
        Distillation(
            teachers,
            KLDivergence(temperature=TEMPERATURE),
            kd_loss_weight=weight,
            org_loss_weight=1.0 - weight,
            end_dur=setting.end_dur,
            n_teachers_to_sample=setting.n_teachers_to_sample,
            combine="probabilities",
            feature_terms=terms,
            telemetry=False,
        )
    ]


def taught(teacher: Teacher, folder: Path) -> tuple[Path, Path]:
    """Return a teacher's checkpoint and its kept answers, made now if they are not there."""
    checkpoint = folder / "teachers" / f"{teacher.name}.pt"
    answers, record = folder / "answers" / teacher.name, checkpoint.with_suffix(".json")
    if record.exists():
        return checkpoint, answers
    model, data = build_teacher(teacher.seed), training_part(teacher.images)
    plan = Plan(
        choose(teacher.images, teacher.labels, teacher.seed),
        teacher.steps,
        BATCH,
        TEACHER_RATE,
        teacher.seed,
    )
    begin = time.process_time()
    train(model, plan, checkpoint=checkpoint)
    end = time.process_time()
    cache_teacher(model, list(zip(*(x.split(BATCH) for x in data.tensors), strict=True)), answers)
    numbers = {
        "cpu_seconds": end - begin,
        "cache_cpu_seconds": time.process_time() - end,
        **quality(model, scored_part(teacher.images)),
    }
    record.write_text(json.dumps({k: round(v, DIGITS) for k, v in numbers.items()}))
    return checkpoint, answers


@torch.no_grad()
def quality(model: ComposerClassifier, data: DigitSet) -> dict[str, float]:
    """Return accuracy, NLL and ECE of a model in eval mode."""
    was_training = model.training
    model.eval()
    logits = torch.cat([model.module(images) for images in data.images.split(500)])
    model.train(was_training)
    found = score(logits, data.labels, logits)  # whom it agrees with is not asked here
    return {"accuracy": found.accuracy, "nll": found.nll, "ece": found.ece}
