"""The values of one instance of ``Distillation``, batch by batch, as its log shows them."""

import logging
from collections.abc import Mapping

import torch
from composer.core import Precision, State
from composer.utils import dist
from torch import Tensor

from composer_distill.telemetry.observer import Observer
from composer_distill.telemetry.parts import divide_by_parts
from composer_distill.terms.panel import TeacherPanel
from composer_distill.training.meters import UNEVEN, BatchMeter, balance, is_uneven

_log = logging.getLogger(__name__)

_SHORTEST = 1e-6  # seconds, what Composer's clock tells apart


class Logbook:
    """Gathers a batch's values over its microbatches, and reduces them over ranks.

    Args:
        panel: The teachers, whose share of the time is a value too.
        observer: Warns of teachers at chance level; None without telemetry.
    """

    def __init__(self, panel: TeacherPanel, observer: Observer | None) -> None:
        self.position = 0
        self._panel = panel
        self._observer = observer
        self._meter = BatchMeter()
        self._weights: dict[str, float] = {}
        self._was_uneven = False

    def forget(self) -> None:
        """Forget a batch that did not reach its end."""
        self._meter, self._weights = BatchMeter(), {}

    def start_pass(self) -> None:
        """Forget a pass over the batch that did not complete."""
        self._meter.start_pass()

    def complete_pass(self) -> None:
        """Keep the pass that just ended, if it is the batch's first."""
        self._meter.complete_pass()

    def note_weights(self, weights: Mapping[str, float], org_weight: float) -> None:
        """Note the weights in force, which are the same for the whole batch.

        Args:
            weights: Each term's weight, by its name in the log.
            org_weight: The weight of the student's own loss.
        """
        self._weights = {**weights, "distillation/org_loss_weight": org_weight}

    def note_on_backward(
        self, term: Tensor, values: dict[str, Tensor], count: int | None, state: State
    ) -> None:
        """Note a microbatch's values when its backward runs, weighted as Composer weighs its loss.

        The gradient that reaches the term is the share of the batch that Composer gives to this
        microbatch, whether it counts samples or tokens.

        Args:
            term: The weighted distillation term, before anything is added to it.
            values: Detached scalars by name.
            count: How many positions the microbatch keeps; None where every sample counts alike.
            state: The Trainer's state.
        """
        scale: Tensor | None = None
        if state.precision is Precision.AMP_FP16 and state.scaler is not None:
            scale = state.scaler.scale(torch.ones_like(term))

        def note(gradient: Tensor) -> None:
            share = gradient.detach() if scale is None else gradient.detach() / scale
            extra = {} if count is None else balance(count, share)
            self._meter.add(values | extra, share)

        term.register_hook(note)

    def take(self, state: State) -> dict[str, float]:
        """Return the batch's values by name, the same on every rank, and start the next one."""
        metrics, self._weights = self._weights, {}
        names, values = self._meter.take()
        if names:
            numbers = values.tolist()
            if self._observer is not None:
                names = (*names, "distillation/teacher_time")
                batch_seconds = state.timestamp.batch_wct.total_seconds()
                share = self._panel.seconds() / max(batch_seconds, _SHORTEST)
                numbers.append(min(1.0, share))
            metrics |= zip(names, _mean_over_ranks(numbers, values.device), strict=True)
            divide_by_parts(metrics)
            self._warn(metrics)
        return self.named(metrics)

    def named(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return metrics under this instance's names; the first in a Trainer has the plain ones."""
        suffix = f"_{self.position + 1}" if self.position else ""
        if not suffix:
            return metrics
        renamed = {}
        for name, value in metrics.items():
            head, _, tail = name.partition("/")
            own = f"{head}{suffix}/{tail}" if head == "distillation" else f"{name}{suffix}"
            renamed[own] = value
        return renamed

    def _warn(self, metrics: dict[str, float]) -> None:
        """Warn of what the values tell, taking out those that are there for that alone."""
        if is_uneven(metrics) and not self._was_uneven:
            self._was_uneven = True
            _log.warning(UNEVEN)
        if self._observer is not None:
            self._observer.warn(metrics)


def _mean_over_ranks(numbers: list[float], device: torch.device) -> list[float]:
    """Return the same numbers on every rank."""
    if dist.get_world_size() == 1:
        return numbers
    total = torch.tensor(numbers, dtype=torch.float32, device=device)
    dist.all_reduce(total)
    return (total / dist.get_world_size()).tolist()
