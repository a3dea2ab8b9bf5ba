"""One model through the Composer Trainer, with its progress shown and its curve measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm, Callback, State
from composer.loggers import Logger
from composer.models import ComposerClassifier
from composer.optim import CosineAnnealingScheduler
from torch import Tensor
from tqdm.auto import tqdm

from composer_distill.demo.data import Batch, DigitSet, make_loader
from composer_distill.demo.scores import Scores, answer, score


@dataclass(frozen=True)
class Point:
    """The scores after ``step`` batches."""

    step: int
    scores: Scores


class Curve(Callback):
    """Scores the model on ``test`` after every ``interval`` batches.

    Args:
        test: The images to answer.
        teacher_logits: The teacher's answers to them.
        interval: Batches from one point to the next.
    """

    def __init__(self, test: DigitSet, teacher_logits: Tensor, interval: int) -> None:
        self.test = test
        self.teacher_logits = teacher_logits
        self.interval = interval
        self.points: list[Point] = []

    def batch_end(self, state: State, logger: Logger) -> None:
        """Add a point where one is due."""
        step = state.timestamp.batch.value
        if step % self.interval == 0:
            logits = answer(_classifier(state), self.test)
            scores = score(logits, self.test.labels, self.teacher_logits)
            self.points.append(Point(step, scores))


class Progress(Callback):
    """Moves ``bar`` by one for each batch, whichever model trains."""

    def __init__(self, bar: "tqdm[Any]") -> None:
        self.bar = bar

    def batch_end(self, state: State, logger: Logger) -> None:
        """Count the batch."""
        self.bar.update()


@dataclass(frozen=True)
class Plan:
    """What to train on and for how long.

    Args:
        data: The training set.
        steps: Batches to train on.
        batch_size: Images in a batch.
        learning_rate: Peak of AdamW's cosine.
        seed: Seed of the order of the batches and of the Trainer.
        transform: The augmentation, if any.
    """

    data: DigitSet
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    transform: Callable[[Batch], Batch] | None = None


def train(
    model: ComposerClassifier,
    plan: Plan,
    *,
    algorithms: Sequence[Algorithm] = (),
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> float:
    """Train ``model`` in place and return the seconds that it took.

    Args:
        model: The model to train.
        plan: What to train on and for how long.
        algorithms: Composer algorithms.
        callbacks: Composer callbacks.
        checkpoint: Where the Trainer saves its checkpoint at the end; None: nowhere.
    """
    start = time.perf_counter()
    trainer = Trainer(
        model=model,
        train_dataloader=make_loader(plan.data, plan.batch_size, plan.seed, plan.transform),
        max_duration=f"{plan.steps}ba",
        # fused: one call a step instead of one for each parameter
        optimizers=torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, fused=True),
        schedulers=CosineAnnealingScheduler(),
        algorithms=list(algorithms),
        callbacks=list(callbacks),
        # Models this small train faster on a CPU than on a GPU
        device="cpu",
        seed=plan.seed,
        progress_bar=False,
        save_folder=None if checkpoint is None else str(checkpoint.parent),
        save_filename="teacher.pt" if checkpoint is None else checkpoint.name,
        save_latest_filename=None,
        save_interval=f"{plan.steps}ba",
        save_overwrite=True,
    )
    trainer.fit()
    trainer.close()
    return time.perf_counter() - start


def _classifier(state: State) -> ComposerClassifier:
    if not isinstance(state.model, ComposerClassifier):
        raise TypeError(f"Curve needs a ComposerClassifier to score, got {type(state.model)}.")
    return state.model
