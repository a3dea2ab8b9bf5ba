"""A microbatch as a loss of logits compares it: where its classes stand, and what counts of it."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.terms.comparison import (
    MultiHotWatch,
    check_class_axis,
    compares_classes,
    labelled,
    selects_positions,
)
from composer_distill.terms.judging import TeacherJudge
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.student import StudentReader
from composer_distill.terms.task import Task


class MicrobatchReader:
    """Makes a :class:`.Microbatch` of what the student answered, for one loss.

    Args:
        reader: Reads the student.
        kd_loss_fn: A callable ``(student, teacher) -> tensor`` of logits.
        panel: The teachers, whose lane finds early what does not wait for the student.
        judge: Which answers are good enough to learn from; None for all.
    """

    def __init__(
        self,
        reader: StudentReader,
        kd_loss_fn: Any,
        panel: TeacherPanel,
        judge: TeacherJudge | None,
    ) -> None:
        self._reader = reader
        self._loss = kd_loss_fn
        self._panel = panel
        self._needs_labels: bool = getattr(kd_loss_fn, "needs_labels", False)
        self._wants_labels = self._needs_labels or (judge is not None and judge.needs_labels)
        self._multi_hot = MultiHotWatch(kd_loss_fn)
        self.classes = compares_classes(kd_loss_fn)

    @property
    def class_axis(self) -> int:
        """The axis that holds the classes; a softmax over axis 0 runs across positions instead."""
        axis = getattr(self._loss, "dim", -1)
        return axis if isinstance(axis, int) and axis != 0 else -1

    def read(
        self,
        view: Any,
        outputs: Any,
        task: Task | None = None,
        *,
        own_loss: Any = None,
        with_labels: bool = False,
    ) -> Microbatch:
        """Return what the student saw and answered, as the loss compares it.

        Args:
            view: The batch as the student saw it.
            outputs: The student's output.
            task: The student's task, where it is not the one of training.
            own_loss: The student's own loss, which may tell its task; None in evaluation.
            with_labels: Whether labels are wanted even where the loss needs none.
        """
        axis, logits = self.class_axis, self._reader.logits(outputs)
        if own_loss is not None:
            self._reader.ask_own_loss(own_loss, view, outputs, logits)
            self._multi_hot.look(view, logits, axis)
        if isinstance(self._loss, DistillationLoss):
            check_class_axis(view, logits, axis)
        real = self._reader.cut(logits, axis)  # not on the lane, where its gradient would be too
        early = self._reader.reads_batch_alone and self._panel.is_beside(view)
        with self._panel.lane.aside(early):
            found = self._kept(view, outputs, logits, task, with_labels)
            found = replace(found, logits=real, early=early)
            if early:  # before the student: where its positions are, too
                _ = found.places
        return found

    def _kept(
        self, view: Any, outputs: Any, logits: Tensor, task: Task | None, with_labels: bool
    ) -> Microbatch:
        """Return the microbatch: of the student it reads shapes alone, save for a user's mask."""
        axis, classes = self.class_axis, self.classes
        with_labels |= self._wants_labels
        found = self._reader.read(
            view, outputs, logits, axis=axis, task=task, with_labels=with_labels
        )
        if classes is None:
            classes = self._reader.has_classes(view, logits, axis)
        mask = labelled(found.mask, found.labels) if self._needs_labels else found.mask
        selects = selects_positions(self._loss, axis, logits.ndim)
        return replace(found, mask=mask, selects=selects, classes=classes)
