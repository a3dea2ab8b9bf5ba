"""What training tells beyond its losses, gathered while the teachers answer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from composer_distill.panel import Watch
from composer_distill.teachers.streams import untouched_streams
from composer_distill.telemetry import (
    ChanceWatch,
    chance_ratio,
    divergence_and_entropies,
    is_classification,
)

_CHANCE = "chance/"  # gathered like a metric, for the warning alone


class Observer:
    """Notes per-teacher losses, the KL at temperature 1, entropies and teachers at chance level.

    Args:
        labels: What warnings call each teacher.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._chance = ChanceWatch()

    def watch(
        self,
        values: dict[str, Tensor],
        distance: Callable[[Tensor], Tensor],
        classes: Tensor | None,
        axis: int,
        *,
        alone: bool,
    ) -> Watch:
        """Return what notes each answer into ``values`` before answers are combined.

        Args:
            values: Where the microbatch's values are gathered.
            distance: The distillation loss of the student from an answer, without a graph.
            classes: The labels' class indices; None where there are none to trust.
            axis: The class axis.
            alone: Whether no other teacher answers: then the loss of its answer is the term's own,
                and is left to :meth:`note_loss`.
        """

        def note(index: int, logits: Tensor) -> None:
            if not alone:
                with torch.no_grad(), untouched_streams(logits.device):
                    self.note_loss(values, index, distance(logits))
            judge = is_classification(logits, axis) and self._chance.wants(self._labels[index])
            if classes is not None and judge:
                values[f"{_CHANCE}{index}"] = chance_ratio(logits, classes, axis)

        return note

    def note_loss(self, values: dict[str, Tensor], index: int, distance: Tensor) -> None:
        """Note one of several teachers' distillation loss."""
        if len(self._labels) > 1:
            values[f"distillation/kd_loss/teacher_{index}"] = distance

    def note_target(
        self, values: dict[str, Tensor], student: Tensor, target: Tensor, axis: int
    ) -> None:
        """Note how far apart and how sure student and target are."""
        if is_classification(student, axis):
            names = ("kl", "student_entropy", "teacher_entropy")
            found = divergence_and_entropies(student.detach(), target, axis)
            values |= {f"distillation/{n}": v for n, v in zip(names, found, strict=True)}

    def warn_of_chance(self, metrics: dict[str, float]) -> None:
        """Take what is there for warnings alone out of a batch's metrics, and warn."""
        for name in [name for name in metrics if name.startswith(_CHANCE)]:
            index = int(name.removeprefix(_CHANCE))
            self._chance.note(self._labels[index], metrics.pop(name))
