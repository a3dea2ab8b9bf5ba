"""One student through the Composer Trainer, its scores and CPU seconds taken on the way."""

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger
from composer.models import HuggingFaceModel
from composer.optim import ConstantWithWarmupScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from composer_distill import CachedTeacher, Distillation, KLDivergence, cache_teacher
from composer_distill.demo.real.material import Windows
from composer_distill.demo.real.scores import Scores, score

_WARMUP = 5


@dataclass(frozen=True)
class Point:
    """The scores after some steps, and the CPU seconds that those took, no score counted."""

    step: int
    cpu_seconds: float
    scores: Scores


class Curve(Callback):
    """Scores a student on the way, its clock standing still meanwhile.

    Args:
        text: What it is scored on.
        first: The tokens that the teacher puts first there.
        at: After which steps.
        bar: What to move by one for each batch; None: nothing.
    """

    def __init__(
        self, text: Tensor, first: Tensor, at: Collection[int], bar: "tqdm[Any] | None" = None
    ) -> None:
        self.text = text
        self.first = first
        self.at = at
        self.bar = bar
        self.points: list[Point] = []
        self._began = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock."""
        self._began = time.process_time()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add a point where one is due."""
        stopped = time.process_time()
        step = state.timestamp.batch.value
        if self.bar is not None:
            self.bar.update()
        if step in self.at:
            model = state.model
            scores, _ = score(model.model, self.text, self.first)  # pyright: ignore[reportArgumentType]
            self.points.append(Point(step, stopped - self._began, scores))
        self._began += time.process_time() - stopped


def train(
    student: Any,
    windows: Tensor,
    curve: Curve,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    algorithm: Algorithm | None = None,
) -> list[Point]:
    """Train ``student`` in place on ``windows``, in their order, and return its curve.

    The learning rate is constant after a few steps, so that each point of the curve is what a run
    of that length would have come to.
    """
    trainer = Trainer(
        model=HuggingFaceModel(student),
        train_dataloader=DataLoader(Windows(windows), batch_size=batch_size),
        max_duration="1ep",
        optimizers=torch.optim.AdamW(student.parameters(), lr=learning_rate, fused=True),
        schedulers=ConstantWithWarmupScheduler(t_warmup=f"{_WARMUP}ba"),
        algorithms=[] if algorithm is None else [algorithm],
        callbacks=[curve],
        device="cpu",
        seed=seed,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()
    return curve.points


def distilled_by(teacher: Any) -> Distillation:
    """Return the algorithm: the forward KL of the logits alone, at temperature 1."""
    return Distillation(teacher, KLDivergence(temperature=1.0), 1.0, 0.0, telemetry=False)


def answers_to(
    teacher: nn.Module,
    windows: Tensor,
    folder: Path,
    samples: int,
    *,
    progress_bar: bool = False,
) -> CachedTeacher:
    """Let ``teacher`` answer ``windows`` once, by ``samples`` draws a position."""
    loader = DataLoader(Windows(windows), batch_size=4)
    cache_teacher(teacher, loader, folder, samples=samples, device="cpu", progress_bar=progress_bar)
    return CachedTeacher(folder)
