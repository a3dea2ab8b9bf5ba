"""Attention transfer and similarity preserving, beside logits and beside nothing, on clothes.

``python -m tests.benchmarks.evidence.feature_images --output DIR``

The images are Fashion-MNIST's, from Debian's package ``dataset-fashion-mnist``; ``--fast`` takes
scikit-learn's digits instead, which are always there.
"""

import gzip
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer.models import ComposerClassifier
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from composer_distill import Distillation, FeatureTerm, KLDivergence
from composer_distill.demo.data import Batch, DigitSet, load_split
from composer_distill.demo.training import Plan, train
from composer_distill.losses import AttentionTransfer, SimilarityPreserving
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, panels, title
from tests.benchmarks.evidence.runs import DIGITS, quality, today
from tests.benchmarks.evidence.tables import FACTORS, compare, level, rows_of, values

FASHION = Path("/usr/share/datasets/fashion-mnist")
STAGES, BATCH, RATE = 3, 64, 1e-2
METRICS = ("accuracy", "nll")


@dataclass(frozen=True)
class Scale:
    """How long student and teacher train, and on how many images; none: on digits."""

    steps: int = 600
    teacher_steps: int = 1200
    images: int = 3000


@dataclass(frozen=True)
class Setting:
    """All that a student's run depends on, beside its seed: its scale, and which terms it has."""

    scale: Scale
    terms: tuple[str, ...]

    @property
    def teacher(self) -> str:
        """What files call the teacher."""
        return f"resnet-width-16-images-{self.scale.images}-steps-{self.scale.teacher_steps}"

    def plain(self) -> dict[str, Any]:
        """Return the setting as JSON holds it."""
        return {**asdict(self), "teachers": [self.teacher] if self.terms else []}


def feature_terms(wanted: tuple[str, ...]) -> list[FeatureTerm]:
    """Return the terms, with the weights that their pages tell unless the name says otherwise."""
    stages = [f"module.stages.{stage}" for stage in range(STAGES)]
    known = {
        "AT": FeatureTerm(stages, loss=AttentionTransfer(), weight=1000.0, name="AT"),
        "AT/10": FeatureTerm(stages, loss=AttentionTransfer(), weight=100.0, name="AT"),
        "SP": FeatureTerm(stages[-1], loss=SimilarityPreserving(), weight=3000.0, name="SP"),
    }
    return [known[name] for name in wanted if name in known]


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, with each term, and with each term beside logits."""
    return {
        "alone": Setting(scale, ()),
        "AT": Setting(scale, ("AT",)),
        "AT at 100": Setting(scale, ("AT/10",)),
        "SP": Setting(scale, ("SP",)),
        "logits": Setting(scale, ("logits",)),
        "logits, AT": Setting(scale, ("logits", "AT")),
        "logits, AT at 100": Setting(scale, ("logits", "AT/10")),
        "logits, SP": Setting(scale, ("logits", "SP")),
    }


class Block(nn.Module):
    """A residual block that overwrites nothing, so that what it gives may be read."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.way = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        same = before == after and stride == 1
        self.past = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.way(x) + self.past(x))


class ResNet(nn.Module):
    """A small residual network of three stages."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = nn.Conv2d(1, width, 3, 2, 1)
        stages = []
        for stage, after in enumerate(widths):
            before = width if stage == 0 else widths[stage - 1]
            first = Block(before, after, 1 if stage == 0 else 2)
            more = [Block(after, after, 1) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(first, *more))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def make_model(width: int, blocks: int, seed: int) -> ComposerClassifier:
    """Return a network of random weights."""
    torch.manual_seed(seed)
    return ComposerClassifier(ResNet(width, blocks), num_classes=10)


def load_images(count: int) -> tuple[DigitSet, DigitSet]:
    """Return ``count`` images of clothes to train on and 10,000 to test on; 0: digits."""
    if not count:
        return load_split(200)
    if not FASHION.exists():
        raise SystemExit(f"{FASHION} is not there. apt install dataset-fashion-mnist")
    train_set, test_set = (read(f"{split}") for split in ("train", "t10k"))
    return train_set.subset(torch.arange(count)), test_set


def read(split: str) -> DigitSet:
    """Return the images and labels of a split: IDX files, whose headers have 16 and 8 bytes."""

    def data(kind: str, header: int) -> Tensor:
        content = gzip.decompress((FASHION / f"{split}-{kind}-ubyte.gz").read_bytes())
        return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).copy())

    images = data("images-idx3", 16).view(-1, 1, 28, 28).float() / 255
    return DigitSet(images, data("labels-idx1", 8).long())


def moved(batch: Batch) -> Batch:
    """Shift the batch by up to two pixels and mirror it in half of the cases."""
    images, labels = batch
    size = images.shape[-1]
    down, right, mirror = (int(torch.randint(n, ())) for n in (5, 5, 2))
    images = F.pad(images, (2, 2, 2, 2))[..., down : down + size, right : right + size]
    return (images.flip(-1) if mirror else images), labels


def fit(
    model: ComposerClassifier, scale: Scale, steps: int, seed: int, algorithms: list[Any]
) -> dict[str, float]:
    """Train a model in place and return its quality and the CPU seconds that it took."""
    train_set, test_set = load_images(scale.images)
    started = time.process_time()
    train(model, Plan(train_set, steps, BATCH, RATE, seed, moved), algorithms=algorithms)
    numbers = {"cpu_seconds": time.process_time() - started, **quality(model, test_set)}
    return {name: round(value, DIGITS) for name, value in numbers.items()}


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    algorithms = []
    if setting.terms:
        on_logits = "logits" in setting.terms
        algorithms.append(
            Distillation(
                taught(setting, folder),
                KLDivergence(temperature=4.0) if on_logits else None,
                kd_loss_weight=0.9,
                org_loss_weight=0.1 if on_logits else 1.0,
                feature_terms=feature_terms(setting.terms),
                telemetry=False,
            )
        )
    student = make_model(8, 1, seed)
    return {
        "date": today(),
        **fit(student, setting.scale, setting.scale.steps, seed, algorithms),
    }


def taught(setting: Setting, folder: Path) -> ComposerClassifier:
    """Return the teacher, trained now if it is not there."""
    model = make_model(16, 2, 0)
    weights = folder / "teachers" / f"{setting.teacher}.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model
    record = fit(model, setting.scale, setting.scale.teacher_steps, 0, [])
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps(record))
    torch.save(model.state_dict(), weights)
    return model


def show(document: Document) -> str:
    """Return all rows beside the student alone, then those with logits beside logits alone."""
    (teacher,) = document["teachers"].values()
    seconds = {"CPU seconds": lambda row: level(document, row, "cpu_seconds", 1)}
    with_logits = [row for row in rows_of(document) if row.startswith("logits")]
    return (
        f"The teacher has {100 * teacher['accuracy']:.2f} % and {teacher['nll']:.3f} nats.\n\n"
        f"{compare(document, 'alone', METRICS, seconds)}\n\nBeside logits alone:\n\n"
        f"{compare(document, 'logits', METRICS, rows=with_logits)}"
    )


def draw(document: Document) -> Figure:
    """Draw each row's accuracy and NLL, and the teacher's."""
    figure, axes = panels(2, width=5.0)
    (teacher,) = document["teachers"].values()
    names = [row.replace(", ", "\n") for row in rows_of(document)]
    for each, metric in zip(axes, METRICS, strict=True):
        for place, row in enumerate(rows_of(document)):
            colour = ALONE if row == "alone" else DISTILLED if "logits" in row else OTHER
            found = values(document, row, metric)
            each.plot([place] * len(found), found, "o", color=colour, alpha=0.6)
        height = teacher[metric] * FACTORS.get(metric, 1.0)
        each.axhline(height, color=GREY, linestyle="--", label="teacher")
        each.set_xticks(range(len(names)), names)
        title(each, metric)
    axes[0].legend(frameon=False)
    return figure


EXPERIMENT = Experiment(
    "feature_images", rows, show, draw, run, seeds=3, scales=(Scale(), Scale(16, 16, 0))
)

if __name__ == "__main__":
    main(EXPERIMENT)
