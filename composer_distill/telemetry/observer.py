"""What training tells beyond its losses, gathered while the teachers answer."""

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from composer_distill.teachers.microbatch import Compared
from composer_distill.teachers.streams import untouched_streams
from composer_distill.telemetry.values import (
    ChanceWatch,
    are_probabilities,
    chance_ratio,
    divergence_and_entropies,
    is_classification,
)

_log = logging.getLogger(__name__)

# Gathered like metrics, for warnings alone
_CHANCE, _SHARES = "chance/", "probabilities/"

Watch = Callable[[int, Tensor], None]
"""Called with each answering teacher's index and logits, before they are combined."""


class Observer:
    """Notes per-teacher losses, the KL at temperature 1, entropies and teachers at chance level.

    Args:
        labels: What warnings call each teacher.
        own: Which of them are made of the student, and know at first what it knows.
    """

    def __init__(self, labels: Sequence[str], own: Collection[int] = ()) -> None:
        self._labels = tuple(labels)
        self._own = frozenset(own)
        self._chance = ChanceWatch()
        self._seen: set[int] = set()

    @property
    def wants_labels(self) -> bool:
        """Whether too little is known about a teacher to tell it from one at chance level."""
        return any(map(self._wants_chance, range(len(self._labels))))

    def _wants_chance(self, index: int) -> bool:
        return index not in self._own and self._chance.wants(self._labels[index])

    def watch(
        self,
        values: dict[str, Tensor],
        student: Compared,
        distance: Callable[[Tensor], Tensor],
        *,
        alone: bool,
        classes: bool,
    ) -> Watch:
        """Return what notes each answer into ``values`` before answers are combined.

        Args:
            values: Where the microbatch's values are gathered.
            student: What is compared of the student, with labels only where they can be trusted.
            distance: The distillation loss of the student from an answer; called without a graph.
            alone: Whether no other teacher answers: then the loss of its answer is the term's own,
                and is left to :meth:`note_loss`.
            classes: Whether the logits are of classes.
        """
        axis, labels = student.axis, student.labels

        def note(index: int, logits: Tensor) -> None:
            if not alone:
                with torch.no_grad(), untouched_streams(logits.device):
                    self.note_loss(values, index, distance(logits))
            if not (classes and is_classification(logits, axis)):
                return
            if index not in self._seen:
                both = are_probabilities(student.logits, axis)  # then the loss may be one of shares
                values[f"{_SHARES}{index}"] = are_probabilities(logits, axis) * (1.0 - both)
            if labels is not None and self._wants_chance(index):
                values[f"{_CHANCE}{index}"] = chance_ratio(logits, labels, axis)

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
            found = divergence_and_entropies(student, target, axis)
            values |= {f"distillation/{n}": v for n, v in zip(names, found, strict=True)}

    def warn(self, metrics: dict[str, float]) -> None:
        """Take what is there for warnings alone out of a batch's metrics, and warn."""
        for name in [name for name in metrics if name.startswith(_SHARES)]:
            index = int(name.removeprefix(_SHARES))
            self._seen.add(index)
            if metrics.pop(name) > 0.999:
                _log.warning(
                    "%s: its outputs lie between 0 and 1 and sum to 1, as probabilities do, but "
                    "logits are needed: their softmax is almost even. Take them before its "
                    "softmax, or pass Teacher(..., output_fn=torch.log).",
                    self._labels[index],
                )
        for name in [name for name in metrics if name.startswith(_CHANCE)]:
            index = int(name.removeprefix(_CHANCE))
            self._chance.note(self._labels[index], metrics.pop(name))
