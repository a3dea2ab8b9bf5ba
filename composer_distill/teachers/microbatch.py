"""What a microbatch is: the batch as the student saw it, its logits, and what of them counts."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_distill.teachers.splitting import take


class Compared(NamedTuple):
    """What of a microbatch's logits a loss gets and a log tells of.

    Shape:
        - logits: ``(K, C)`` where kept positions were selected, else ``(..., C)`` or the class axis
          at ``axis``.
        - mask, labels: the same without the class axis; a mask only where none were selected.
    """

    logits: Tensor
    axis: int = -1
    mask: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class Microbatch:
    """A microbatch that the student has answered; all rooms get what they need of it from here.

    Kept positions are selected before any loss and before everything that is logged, so that no
    softmax runs over a position that does not count. Where no position is kept, one position of
    zeros stands in for them: every value keeps its name on every rank, and ``empty`` says that the
    values mean nothing.

    Args:
        view: The batch as the student saw it. Nothing may change it.
        outputs: The student's whole output.
        logits: The student's logits over the real vocabulary.
        mask: True where a position counts, None where all do.
        labels: The class that each position predicts, -100 for none; None where they are not known
            or not needed.
        axis: The class axis.
        selects: Whether a loss gets the kept positions as rows; otherwise it gets the mask.
        classes: Whether the logits are of classes that exclude each other, instead of any numbers.
        early: Whether the mask was made of the batch alone, so that it stands before the logits do.

    Shape:
        - logits: ``(..., C)``, or the class axis at ``axis``.
        - mask, labels: the same without the class axis.

    Example:
        >>> import torch
        >>> mask = torch.tensor([[True, False, True]])
        >>> microbatch = Microbatch({}, None, torch.zeros(1, 3, 9), mask)
        >>> microbatch.count, tuple(microbatch.compared.logits.shape)
        (2, (2, 9))
    """

    view: Any
    outputs: Any
    logits: Tensor
    mask: Tensor | None = None
    labels: Tensor | None = None
    axis: int = -1
    selects: bool = True
    classes: bool = True
    early: bool = False

    @cached_property
    def kept(self) -> Compared:
        """The kept positions, as rows where not all are: what is logged."""
        if self.mask is None:
            return Compared(self.logits, self.axis, None, self.labels)
        labels = self.labels
        if self.empty:
            rows = self.logits.new_zeros(1, self.logits.shape[self.axis])
            return Compared(rows, labels=None if labels is None else labels.new_zeros(1))
        labels = None if labels is None else labels.reshape(-1)[self.places]
        return Compared(self.rows_of(self.logits), labels=labels)

    @cached_property
    def compared(self) -> Compared:
        """What the loss gets: the kept positions, or all of them and the mask."""
        if self.selects or self.mask is None:
            return self.kept
        return Compared(self.logits, self.axis, self.mask, self.labels)

    def keep(self, target: Tensor) -> Tensor:
        """Return a target in the shape of ``compared`` at the kept positions, as ``kept`` is."""
        if self.mask is None or self.selects:
            return target
        return self.kept.logits if self.empty else self.rows_of(target)

    @cached_property
    def places(self) -> Tensor | None:
        """Which positions are kept, as whole numbers, None for all: the host waits for it once.

        Shape:
            - result: ``(K,)``, counted over all axes but that of the classes.
        """
        return None if self.mask is None else self.mask.reshape(-1).nonzero().squeeze(1)

    def rows_of(self, tensor: Tensor) -> Tensor:
        """Return the kept positions of logits in the shape of the student's, as rows.

        Shape:
            - tensor: ``(..., C)``, or the class axis at ``axis``.
            - result: ``(K, C)``, with K the number of kept positions; K may be 0.
        """
        if self.places is None:
            return tensor
        # The gradient of tensor[mask] takes several times as long as that of whole rows
        rows = tensor.movedim(self.axis, -1).reshape(-1, tensor.shape[self.axis])
        return rows.index_select(0, self.places)

    @property
    def count(self) -> int | None:
        """How many positions count, None where all do; known as soon as ``places`` are."""
        return None if self.places is None else len(self.places)

    @property
    def empty(self) -> bool:
        """Whether no position counts."""
        return self.count == 0

    @property
    def head_mask(self) -> Tensor | None:
        """The positions at which a teacher's output head may run alone, or None for all."""
        is_last = self.axis % self.logits.ndim == self.logits.ndim - 1
        return self.mask if self.selects and is_last else None

    def take(self, rows: Tensor) -> "Microbatch":
        """Return some of the samples, without the student's graph and whole output.

        Args:
            rows: Which, along the first axis of the logits.

        Shape:
            - rows: ``(n,)``, whole numbers.
        """
        view = take(self.view, rows, len(self.logits))
        rows = rows.to(self.logits.device)
        chosen = (None if x is None else x[rows] for x in (self.mask, self.labels))
        mask, labels = chosen
        logits = self.logits.detach()[rows]
        parts = {"logits": logits, "mask": mask, "labels": labels}
        return replace(self, view=view, outputs=None, early=False, **parts)

    @property
    def first_axis(self) -> Tensor:
        """The sample that each entry of the first axis of what is compared is of."""
        samples = torch.arange(len(self.logits), device=self.logits.device)
        if self.mask is None or not self.selects:
            return samples
        per_sample = self.mask.reshape(len(self.mask), -1)
        return per_sample.nonzero()[:, 0]

    def zero(self) -> Tensor:
        """Return 0 with a gradient path to the student, for a microbatch without positions."""
        return self.logits[..., :0].sum()
