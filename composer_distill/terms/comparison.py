"""What of a microbatch's logits is compared: the real vocabulary at the kept positions."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.teachers.outputs import check_shapes
from composer_distill.terms.positions import IGNORED_LABEL, select_positions
from composer_distill.terms.vocabulary import cut_vocabulary


class Comparison:
    """Brings the student's logits, and then each teacher's, to what the loss compares.

    The kept positions are selected before the loss and before everything that is logged, so that
    no softmax runs over a position that does not count. Where no position is kept, one position of
    zeros stands in for them: every value keeps its name on every rank. ``empty`` says that the
    values mean nothing then, and :meth:`zero` is the loss.

    Args:
        student: The student's logits.
        mask: True where a position counts, or None.
        labels: The class that each position predicts, or None.
        axis: The class axis.
        vocab_size: How many classes are real, or None.
        select: Whether the loss gets the kept positions as rows; otherwise it gets the mask.
        hint: What to do where the numbers of classes differ, for the error; None for no hint.

    Shape:
        - student: ``(..., C)``, or the class axis at ``axis``.
        - mask, labels: the same without the class axis.
        - ``self.student`` and a teacher's answer: ``(K, C)`` where positions are selected.
    """

    def __init__(
        self,
        student: Tensor,
        mask: Tensor | None,
        labels: Tensor | None = None,
        *,
        axis: int = -1,
        vocab_size: int | None = None,
        select: bool = True,
        hint: Callable[[int, int], str] | None = None,
    ) -> None:
        self._full_axis = axis
        self._vocab_size = vocab_size
        self._hint = hint
        self._kept = mask
        self._selects = select and mask is not None
        self._full = cut_vocabulary(student, vocab_size, "the student", axis)
        rows = self._full if mask is None else select_positions(self._full, mask, axis)
        # The number of selected rows is known without another look at the device
        self.count = None if mask is None else len(rows)
        self.empty = self.count == 0
        self._rows = self._stand_in() if self.empty else rows
        self.student = self._rows if self._selects else self._full
        self.axis = -1 if self._selects else axis
        self.mask = None if self._selects else mask
        self.labels = labels
        if self._selects and mask is not None and labels is not None:
            self.labels = labels.new_zeros(1) if self.empty else labels[mask]

    @property
    def head_mask(self) -> Tensor | None:
        """The positions at which a teacher's output head may run alone, or None for all."""
        is_last = self._full_axis % self._full.ndim == self._full.ndim - 1
        return self._kept if self._selects and is_last else None

    def teacher(self, logits: Tensor, owner: str) -> Tensor:
        """Return a teacher's logits in the shape of ``self.student``.

        Args:
            logits: The teacher's logits, at all positions or at the kept ones only.
            owner: Which teacher it is, for errors.

        Raises:
            ValueError: If their shape does not fit the student's.
        """
        remedy = self._remedy(logits)
        logits = cut_vocabulary(logits, self._vocab_size, owner, self._full_axis)
        at_kept = self.head_mask is not None and logits.ndim == 3
        if at_kept and logits.shape[:2] == (1, self.count):
            at_all = logits.new_empty(()).expand(*self._full.shape[:-1], logits.shape[-1])
            check_shapes(self._full, at_all, owner, remedy)  # says what it would be elsewhere
            logits = logits[0]
        else:
            check_shapes(self._full, logits, owner, remedy)
            if self._selects and self._kept is not None:
                logits = select_positions(logits, self._kept, self._full_axis)
        return self._stand_in() if self._selects and self.empty else logits

    def logged(self, target: Tensor) -> tuple[Tensor, Tensor, int]:
        """Return student and target at the kept positions, and their class axis, for logs.

        Args:
            target: The teachers' combined logits, in the shape of ``self.student``.
        """
        if self._kept is None or self._selects:
            return self.student, target, self.axis
        if self.empty:
            return self._rows, self._rows, -1
        return self._rows, select_positions(target, self._kept, self._full_axis), -1

    def zero(self) -> Tensor:
        """Return 0 with a gradient path to the student, for a microbatch without positions."""
        return self._full[..., :0].sum()

    def _remedy(self, logits: Tensor) -> str | None:
        """Return what to do if the teacher's classes are not as many as the student's."""
        ours, theirs = self._full.shape[self._full_axis], logits.shape[self._full_axis]
        return None if self._hint is None else self._hint(ours, theirs)

    def _stand_in(self) -> Tensor:
        return self._full.new_zeros(1, self._full.shape[self._full_axis])


def selects_positions(kd_loss_fn: Any, axis: int, ndim: int) -> bool:
    """Return whether a loss gets the kept positions as rows instead of a mask.

    Every callable does, save for our losses where their value depends on the layout: classes that
    are not last, or ``reduction='batchmean'``, which divides by the length of the first axis.

    Args:
        kd_loss_fn: The loss.
        axis: The class axis of the logits.
        ndim: Their number of axes.
    """
    if not isinstance(kd_loss_fn, DistillationLoss):
        return True
    parts = kd_loss_fn.modules()
    by_length = any(getattr(part, "reduction", "mean") == "batchmean" for part in parts)
    return not by_length and axis % ndim == ndim - 1


def labelled(mask: Tensor | None, labels: Tensor | None) -> Tensor | None:
    """Return the positions of a mask that have a label, for losses that need one.

    Args:
        mask: True where a position counts, or None for all.
        labels: One class a position, -100 for none; None where the batch has none.

    Shape:
        - mask, labels, result: the same.

    Example:
        >>> import torch
        >>> labelled(None, torch.tensor([[5, -100]]))
        tensor([[ True, False]])
    """
    if labels is None or labels.ndim < 2:
        return mask
    known = labels != IGNORED_LABEL
    return known if mask is None else mask & known
