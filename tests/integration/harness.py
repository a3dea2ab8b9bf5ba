"""What the integration tests share: small models and data, real Trainers, and loops by hand.

Models and data are float64, so that a run may be compared closely with a loop in plain torch.
Composer itself rounds a microbatch's share of the batch to float32: hence ``RTOL``.
"""

import copy
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from composer import Trainer
from composer.core import Callback, Event, State
from composer.loggers import Logger, LoggerDestination
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

N_FEATURES, N_CLASSES = 6, 4
LEARNING_RATE = 0.5
RTOL = 1e-6

Batch = Any
Objective = Callable[[nn.Module, Batch], Tensor]


def mlp(seed: int, *, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Return a small classifier whose weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(N_FEATURES, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, N_CLASSES)
        model = nn.Sequential(*layers).to(dtype)
        with torch.no_grad():
            model[-1].weight.mul_(4.0)  # confident enough that a wrong distance shows
    return model


def batch_norm_mlp(seed: int) -> nn.Sequential:
    """Return a classifier whose answer and buffers depend on its mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(N_FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, N_CLASSES)
        ).double()


class Noisy(nn.Module):
    """A teacher whose forward draws from every random stream, and whose answer ignores them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor) -> Tensor:
        torch.rand(17)
        random.random()
        np.random.rand(3)
        return self.module(inputs)


class Classifier(ComposerModel):
    """A ComposerModel around any module, with any loss: ``loss_fn(logits, targets)``."""

    def __init__(
        self, module: nn.Module, loss_fn: Callable[[Any, Tensor], Any] = F.cross_entropy
    ) -> None:
        super().__init__()
        self.module = module
        self.loss_fn = loss_fn

    def forward(self, batch: Batch) -> Any:
        return self.module(batch[0])

    def loss(self, outputs: Any, batch: Batch) -> Any:
        return self.loss_fn(outputs, batch[1])


def dataset(n: int = 20, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, N_FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator)
    return TensorDataset(inputs.to(dtype), targets)


def loader(n: int = 20, batch_size: int = 10, **kwargs: Any) -> DataLoader:
    """Return batches that come in the same order every time."""
    return DataLoader(dataset(n, **kwargs), batch_size=batch_size)


def image_loader(n: int = 8, batch_size: int = 4, size: int = 8) -> DataLoader:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, N_CLASSES, (n,), generator=generator)
    return DataLoader(TensorDataset(images, targets), batch_size=batch_size)


def forward_kl(temperature: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the forward KL of softened distributions, written apart from the package."""

    def distance(student: Tensor, teacher: Tensor) -> Tensor:
        target = (teacher / temperature).softmax(-1)
        entropy = (target * target.log()).sum(-1)
        cross = (target * (student / temperature).log_softmax(-1)).sum(-1)
        return (entropy - cross).mean() * temperature**2

    return distance


def trainer_for(
    student: ComposerModel,
    algorithms: Any = (),
    *,
    train_dataloader: Any = None,
    max_duration: Any = "1ep",
    lr: float = LEARNING_RATE,
    **kwargs: Any,
) -> Trainer:
    """Return a quiet Trainer with a ``Log``: plain SGD, the same seed every time."""
    kwargs.setdefault("device", "cpu")
    kwargs.setdefault("optimizers", torch.optim.SGD(student.parameters(), lr=lr))
    return Trainer(
        model=student,
        train_dataloader=loader() if train_dataloader is None else train_dataloader,
        max_duration=max_duration,
        algorithms=algorithms,
        loggers=[Log(), *kwargs.pop("loggers", ())],
        seed=kwargs.pop("seed", 17),
        progress_bar=False,
        **kwargs,
    )


def fit(student: ComposerModel, algorithms: Any = (), **kwargs: Any) -> Trainer:
    """Train and return the Trainer, closed so that the algorithms may be used again."""
    trainer = trainer_for(student, algorithms, **kwargs)
    trainer.fit()
    trainer.close()
    return trainer


def train_by_hand(
    module: nn.Module, batches: Iterable[Batch], objective: Objective, lr: float = LEARNING_RATE
) -> nn.Module:
    """Return a copy of ``module`` trained by plain gradient descent, one step a batch."""
    module = copy.deepcopy(module)
    parameters = list(module.parameters())
    for batch in batches:
        gradients = torch.autograd.grad(objective(module, batch), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(lr * gradient)
    return module


class Log(LoggerDestination):
    """Keeps every metric with the step that a plot would show it at."""

    def __init__(self) -> None:
        self.entries: dict[str, list[tuple[int | None, float]]] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.entries.setdefault(name, []).append((step, float(value)))


def entries_of(trainer: Trainer) -> dict[str, list[tuple[int | None, float]]]:
    """Return what a run logged: ``(step, value)`` by name."""
    return next(x for x in trainer.logger.destinations if isinstance(x, Log)).entries


def logged(trainer: Trainer, name: str) -> list[float]:
    """Return the values that were logged as ``name``, in order."""
    return [value for _, value in entries_of(trainer).get(name, [])]


def steps_of(trainer: Trainer, name: str) -> list[int | None]:
    """Return the steps at which ``name`` was logged, in order."""
    return [step for step, _ in entries_of(trainer).get(name, [])]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(actual: nn.Module, expected: nn.Module) -> None:
    """Assert that two models hold the same parameters and buffers, bit for bit."""
    ours, theirs = weights(actual), weights(expected)
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def assert_close(actual: nn.Module, expected: nn.Module, rtol: float = RTOL) -> None:
    """Assert that two models hold the same parameters but for rounding."""
    torch.testing.assert_close(weights(actual), weights(expected), rtol=rtol, atol=rtol * 0.1)


def assert_differ(actual: nn.Module, expected: nn.Module) -> None:
    """Assert that two models differ by far more than rounding."""
    ours, theirs = weights(actual), weights(expected)
    assert max((ours[name] - theirs[name]).abs().max() for name in ours) > 1e-3


class Spy(Callback):
    """Calls ``look(state)`` at one event, after all algorithms, and keeps what it returns."""

    def __init__(self, event: Event, look: Callable[[State], Any]) -> None:
        self.event = event
        self.look = look
        self.seen: list[Any] = []

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        if event == self.event:
            self.seen.append(self.look(state))


class Recorder(nn.Module):
    """A teacher that keeps every input it is shown and the mode it was in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.inputs: list[Any] = []
        self.modes: list[bool] = []
        self.grad_modes: list[bool] = []

    def forward(self, inputs: Any) -> Any:
        self.inputs.append(inputs.detach().clone() if isinstance(inputs, Tensor) else inputs)
        self.modes.append(any(module.training for module in self.modules()))
        self.grad_modes.append(torch.is_grad_enabled())
        return self.module(inputs)


def batches_of(data: DataLoader, epochs: int = 1) -> Iterator[Batch]:
    for _ in range(epochs):
        yield from data
