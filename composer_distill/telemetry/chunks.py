"""What a batch tells about distillation, where its logits come a few rows at a time."""

import torch
from torch import Tensor

from composer_distill.telemetry.values import divergence_and_entropies, top1_agreement


class ChunkedTelemetry:
    """Adds up agreement, KL and entropies over chunks of rows, of which it keeps nothing.

    Args:
        tells: Whether beside the agreement the KL at temperature 1 and the entropies are told.
        device: Where the logits lie.

    Example:
        >>> telemetry = ChunkedTelemetry(tells=True)
        >>> for classes in (torch.zeros(2, 4), torch.zeros(1, 4)):
        ...     telemetry(classes, classes)
        >>> {name: round(value.item(), 4) for name, value in telemetry.values().items()}
        {'agreement': 1.0, 'kl': 0.0, 'student_entropy': 1.3863, 'teacher_entropy': 1.3863}
    """

    def __init__(self, *, tells: bool, device: torch.device | None = None) -> None:
        names = ("agreement", *(("kl", "student_entropy", "teacher_entropy") if tells else ()))
        self._sums = {name: torch.zeros((), device=device) for name in names}
        self._rows = 0

    def __call__(self, student: Tensor, teacher: Tensor) -> None:
        """Add the means of a chunk, ``(rows, V)`` of each, weighted by its rows."""
        rows = len(student)
        agreement = top1_agreement(student, teacher)
        if agreement is None:
            return
        found = [agreement]
        if len(self._sums) > 1:
            found += divergence_and_entropies(student, teacher)
        self._rows += rows
        for name, value in zip(self._sums, found, strict=True):
            self._sums[name] += value.to(self._sums[name].dtype) * rows

    def values(self) -> dict[str, Tensor]:
        """Return the means over all rows, by name; zeros where there were none."""
        return {name: value / max(self._rows, 1) for name, value in self._sums.items()}
