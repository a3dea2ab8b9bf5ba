"""The demo's teacher, its student, and the teacher's augmentation."""

import torch
from composer.models import ComposerClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection

from composer_distill.demo.data import CLASSES, Batch

_TURN = 0.25  # radians
_SCALE = 0.15
_SHIFT = 0.25  # of half the width: one pixel of eight


def build_teacher(seed: int = 0) -> ComposerClassifier:
    """Return an untrained convolutional network, initialised by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, CLASSES),
        )
    # Convolutions of this size are twice as fast on a CPU with the channels last in memory
    return _classifier(network.to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]


def build_student(seed: int) -> ComposerClassifier:
    """Return an untrained perceptron 64-128-128-10, initialised by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, CLASSES),
        )
    return _classifier(network)


def jitter(batch: Batch) -> Batch:
    """Turn, scale and shift each image a little, each in its own way."""
    images, labels = batch
    turn = _uniform(len(images), _TURN)
    scale = 1 + _uniform(len(images), _SCALE)
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    right, down = _uniform(len(images), _SHIFT), _uniform(len(images), _SHIFT)
    rows = [torch.stack([cosine, -sine, right], -1), torch.stack([sine, cosine, down], -1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False), labels


def count_parameters(model: nn.Module) -> int:
    """Return how many trained numbers ``model`` holds."""
    return sum(parameter.numel() for parameter in model.parameters())


def _classifier(network: nn.Module) -> ComposerClassifier:
    # Metrics during training are the curve's work: none here, so that no step pays for them
    nothing = MetricCollection([])
    return ComposerClassifier(network, CLASSES, train_metrics=nothing, val_metrics=nothing)


def _uniform(count: int, bound: float) -> Tensor:
    return (2 * torch.rand(count) - 1) * bound
