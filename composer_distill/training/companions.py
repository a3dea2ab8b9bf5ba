"""Training the projectors: an optimizer each, stepped with the student's."""

import inspect
import io
from collections.abc import Callable, Iterable
from typing import Any

import torch
from composer.algorithms import GradientClipping
from composer.algorithms.gradient_clipping import apply_gradient_clipping
from composer.core import Precision, State
from composer.utils import dist
from torch import Tensor, nn
from torch.optim import Optimizer

from composer_distill.terms.features.companions import Companions

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]


class CompanionTrainer:
    """Trains the companions as the student is trained, without a trace in its optimizer.

    Gradients are averaged over ranks, unscaled and clipped at AFTER_TRAIN_BATCH, as the student's
    are by then; the step is taken at BATCH_END, where it is known whether the student's was.

    Args:
        companions: The modules.
        make_optimizer: Makes an optimizer of parameters; None for one of the student's kind, with
            the student's hyperparameters of each batch.
        trains: Whether there is anything to train, and to keep in checkpoints.
    """

    def __init__(
        self, companions: Companions, make_optimizer: MakeOptimizer | None, *, trains: bool = True
    ) -> None:
        self.companions = companions
        self.any = trains
        self._make = make_optimizer
        self._optimizers: dict[str, Optimizer] = {}
        self._pending: dict[str, Any] | None = None  # hyperparameters of the step to be taken
        self._scale: float | None = None

    def forget(self) -> None:
        """Forget all of a run that is over."""
        self.companions.forget()
        self._optimizers = {}
        self.forget_batch()

    def forget_batch(self) -> None:
        """Forget the gradients of a pass that did not complete."""
        self._pending, self._scale = None, None
        self.companions.used = {}
        for module in self.companions.modules.values():
            module.zero_grad(set_to_none=True)

    def end_pass(self, state: State) -> None:
        """AFTER_TRAIN_BATCH: make the gradients of the batch what the student's are.

        Raises:
            ValueError: If the optimizer passes over a batch several times.
        """
        if not self.companions.used:
            return
        if self._pending is not None:
            raise ValueError(
                f"{type(state.optimizers[0]).__name__} passes over each batch several times, and "
                "projectors train by one pass. Use another optimizer, without SAM, or terms "
                "without a projector."
            )
        modules = [self.companions.modules[key] for key in self.companions.used]
        gradients = [_gradient(p) for module in modules for p in module.parameters()]
        average_over_ranks(gradients)
        if state.precision is Precision.AMP_FP16 and state.scaler is not None:
            self._scale = state.scaler.get_scale()
            for gradient in gradients:
                gradient.div_(self._scale)
        for algorithm in state.algorithms:
            if isinstance(algorithm, GradientClipping):
                apply_gradient_clipping(
                    nn.ModuleList(modules),
                    algorithm.clipping_type,
                    algorithm.clipping_threshold,
                    fsdp_enabled=False,
                )
        # The scheduler moves on before BATCH_END
        group = state.optimizers[0].param_groups[0]
        self._pending = {name: value for name, value in group.items() if name != "params"}

    def step(self, state: State) -> None:
        """BATCH_END: take the step, unless the scaler kept the student from its own."""
        pending, scale = self._pending, self._scale
        if pending is None:
            return
        skipped = (
            scale is not None
            and state.scaler is not None
            and (state.scaler.get_scale() < scale or not self._finite())
        )
        for key in () if skipped else self.companions.used:
            optimizer = self._optimizer(key, state)
            if self._make is None:
                group = optimizer.param_groups[0]
                group.update({k: v for k, v in pending.items() if k in group})
            optimizer.step()
        self.forget_batch()

    def _finite(self) -> bool:
        modules = self.companions.modules
        gradients = [
            _gradient(p) for key in self.companions.used for p in modules[key].parameters()
        ]
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def _optimizer(self, key: str, state: State) -> Optimizer:
        if key not in self._optimizers:
            parameters = list(self.companions.modules[key].parameters())
            make = self._make or like(state.optimizers[0])
            self._optimizers[key] = make(parameters)
            saved = self.companions.saved.get(key, {}).get("optimizer")
            if saved is not None:
                self._optimizers[key].load_state_dict(saved)
        return self._optimizers[key]

    def state_dict(self) -> bytes:
        """Return all of it as bytes, which any kind of checkpoint keeps as they are."""
        entries = dict(self.companions.saved)  # those whose time has not come yet
        for key, module in self.companions.modules.items():
            entry: dict[str, Any] = {"module": module.state_dict()}
            if key in self._optimizers:
                entry["optimizer"] = self._optimizers[key].state_dict()
            entries[key] = entry
        buffer = io.BytesIO()
        torch.save(entries, buffer)
        return buffer.getvalue()

    def load_state_dict(self, state: bytes) -> None:
        """Keep what a checkpoint holds for when the modules are made; nothing is executed."""
        self.forget()
        if state:
            loaded = torch.load(io.BytesIO(state), weights_only=True, map_location="cpu")
            self.companions.saved = loaded


def average_over_ranks(gradients: list[Tensor]) -> None:
    """Replace gradients by their means over ranks, in place, as DDP and FSDP do."""
    world = dist.get_world_size()
    if world == 1 or not gradients:
        return
    together = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(together)
    together /= world
    pieces = together.split([gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


def like(optimizer: Optimizer) -> MakeOptimizer:
    """Return what makes an optimizer of the student's kind.

    Raises:
        ValueError: If the kind can't be made from its defaults.
    """
    kind = type(optimizer)
    taken = inspect.signature(kind.__init__).parameters
    options = {name: value for name, value in optimizer.defaults.items() if name in taken}

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        try:
            return kind(parameters, **options)
        except Exception as error:
            raise ValueError(
                f"no {kind.__name__} can be made for the projectors as for the student ({error}). "
                "Pass Distillation(..., projector_optimizer=lambda parameters: ...)."
            ) from error

    return make


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad
