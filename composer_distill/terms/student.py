"""How the student is read: its task, its logits, and which positions of them count."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from composer.core import State
from torch import Tensor

from composer_distill.notes import noted
from composer_distill.teachers.lending import handed
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.outputs import extract_logits, passed_over
from composer_distill.teachers.roster import AnyTeacher
from composer_distill.terms.comparison import check_shapes
from composer_distill.terms.label_maps import check_label_maps
from composer_distill.terms.looking import is_looked_at
from composer_distill.terms.own_loss import own_loss, predicts_next
from composer_distill.terms.positions import (
    MaskFn,
    aligned_labels,
    all_positions,
    attended_positions,
    has_class_labels,
    kept_positions,
    loss_positions,
    unread_mask,
)
from composer_distill.terms.task import Task, task_of
from composer_distill.terms.vocabulary import (
    check_same_tokenizer,
    cut_vocabulary,
    explain_sizes,
    tokenizer_of,
)

_log = logging.getLogger(__name__)

_TRIES = 4  # batches whose loss tells nothing, such as those without a label
_LOOKS = 16  # batches that are all looked at for padding that nothing reads; see looking.py


class StudentReader:
    """Makes a :class:`.Microbatch` of what the student saw and answered.

    Args:
        output_fn: Takes the logits out of the student's output, or None.
        mask_fn: Says which positions count; None for the task's default.
        vocab_size: How many classes are real; None for all.
    """

    def __init__(
        self,
        output_fn: Callable[[Any], Any] | None = None,
        mask_fn: MaskFn | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.task = Task()
        self._output_fn = output_fn
        self._mask_fn = mask_fn
        self._tokens: int | None = None
        self._tries = 0
        self._looks = 0
        self._told = False
        self._asked = False  # whether it is known what the logits were taken from

    def prepare(self, state: State, teachers: Sequence[AnyTeacher], labels: Sequence[str]) -> None:
        """Read the student's task, and compare its words and classes with the teachers', at INIT.

        Args:
            state: The Trainer's state.
            teachers: The teachers.
            labels: What errors call each of them.

        Raises:
            ValueError: If a teacher's tokenizer is another one, or its classes stand in another
                order.
        """
        self.task = task_of(state.model)
        self._tries = self._looks = 0
        self._told = self._asked = False
        tokenizer = tokenizer_of(state.model)
        for teacher, label in zip(teachers, labels, strict=True):
            other = tokenizer_of(teacher.model)
            reads_alike = teacher.input_fn is None and teacher.output_fn is None
            if self._output_fn is None:
                check_label_maps(state.model, teacher, label)
            if tokenizer is not None and other is not None and reads_alike:
                check_same_tokenizer(tokenizer, other, label, self.vocab_size)
                self._tokens = len(tokenizer)

    def ask_own_loss(self, loss: Any, view: Any, outputs: Any, logits: Tensor) -> None:
        """Learn from the first loss which label the student's logits predict; later do nothing.

        Only a sequence with one label a position leaves that open. Where the loss is neither
        cross-entropy the task stays what the architecture says, and a warning says so once.

        Args:
            loss: The Trainer's loss, before a term has joined it.
            view: The batch as the student saw it.
            outputs: The student's output.
            logits: The logits in it.
        """
        if self._tries >= _TRIES or logits.ndim != 3:
            return
        labels, value = aligned_labels(view, logits, Task()), own_loss(loss, outputs)
        if labels is None or value is None:
            return
        found = predicts_next(value, logits, labels)
        self._tries = self._tries + 1 if found is None else _TRIES
        if found is not None:
            self.task = self.task.found(predicts_next=found)
            which = "the next position's label" if found else "the label of their own position"
            _log.info("by the student's own loss its logits predict %s", which)
        elif self._tries == _TRIES:
            rule = "the next position's label" if self.task.shift else "their own position's label"
            _log.warning(
                "the student's own loss is no cross-entropy that tells which label its logits "
                "predict. They are taken to predict %s, as its class says; if that is wrong, pass "
                "Distillation(..., mask_fn=...).",
                rule,
            )

    def logits(self, outputs: Any) -> Tensor:
        """Return the logits of the student's output, padding of the vocabulary included."""
        if self._output_fn is not None:
            name, function = "student_output_fn", self._output_fn
            with handed(outputs, name, function) as given, noted(name, function):
                outputs = function(given)
        logits = extract_logits(outputs, "the student")
        if not self._asked:
            self._tell_choice(outputs)
        return logits

    def _tell_choice(self, outputs: Any) -> None:
        """Warn where one of several tensors is taken by its place alone; once."""
        self._asked = True
        if (choice := passed_over(outputs)) is not None:
            _log.warning(
                "the student answers a %s, and %s is compared with the teachers' logits. If that "
                "is another one, choose it: in Distillation(Teacher(teacher, output_fn=choose), "
                "..., student_output_fn=choose) with choose = lambda output: output[1].",
                type(outputs).__name__,
                choice,
            )

    def read(
        self,
        view: Any,
        outputs: Any,
        logits: Tensor,
        *,
        axis: int = -1,
        task: Task | None = None,
        with_labels: bool = False,
    ) -> Microbatch:
        """Return what the student saw and answered, its logits uncut, and which positions count.

        Args:
            view: The batch as the student saw it.
            outputs: The student's output.
            logits: The logits in it.
            axis: The class axis.
            task: The student's task, where it is not the one of training.
            with_labels: Whether labels are wanted.
        """
        task = task or self.task
        seen, mask_fn = (view, outputs), self._mask_fn
        lent = nullcontext(seen) if mask_fn is None else handed(seen, "mask_fn", mask_fn)
        with lent as (batch, answer):
            mask = kept_positions(mask_fn, batch, answer, logits, task, axis)
        if mask is None and self._mask_fn is None:
            self._look_for_padding(view, logits, task)
        labels = aligned_labels(view, logits, task, axis) if with_labels else None
        return Microbatch(view, outputs, logits, mask, labels, axis)

    def cut(self, logits: Tensor, axis: int) -> Tensor:
        """Return the student's logits over the real vocabulary."""
        return cut_vocabulary(logits, self.vocab_size, "the student", axis)

    @property
    def reads_batch_alone(self) -> bool:
        """Whether :meth:`read` needs no values of the student's: a user's function may."""
        return self._mask_fn in (None, loss_positions, attended_positions, all_positions)

    def has_classes(self, view: Any, logits: Tensor, axis: int) -> bool:
        """Return whether the labels or the task say that the logits are of classes.

        Args:
            view: The batch as the student saw it.
            logits: The student's logits.
            axis: What would be their class axis.
        """
        named = logits.ndim > 1 and logits.shape[axis] in self.task.classes
        return named or has_class_labels(view, logits, axis)

    def _look_for_padding(self, view: Any, logits: Tensor, task: Task) -> None:
        """Warn once where every position counts though the batch says that some are padding."""
        unread = None if self._told else unread_mask(view, logits, task)
        if unread is None:
            return
        self._looks += 1
        if is_looked_at(self._looks, _LOOKS) and not unread.all():
            self._told = True
            _log.warning(
                "attention_mask has the shape %s where the student's logits have %s, so that every "
                "position counts, padding too. Pass Distillation(..., mask_fn=...) for those that "
                "are real, or all_positions to count all.",
                tuple(unread.shape),
                tuple(logits.shape),
            )

    def fit(self, answer: Tensor, microbatch: Microbatch, owner: str) -> Tensor:
        """Return a teacher's logits in the shape of what is compared of the student's.

        Args:
            answer: The teacher's logits, at all positions or at the kept ones alone.
            microbatch: What the student saw and answered.
            owner: Which teacher it is, for errors.

        Raises:
            ValueError: If their shape does not fit the student's.
        """
        student, axis = microbatch.logits, microbatch.axis
        remedy = self._about_sizes(microbatch, answer)
        answer = cut_vocabulary(answer, self.vocab_size, owner, axis)
        selected = microbatch.selects and microbatch.mask is not None
        at_kept = microbatch.head_mask is not None and answer.ndim == 3
        if at_kept and answer.shape[:2] == (1, microbatch.count):
            at_all = answer.new_empty(()).expand(*student.shape[:-1], answer.shape[-1])
            check_shapes(student, at_all, owner, remedy)  # says what it would be elsewhere
            answer = answer[0]
        else:
            check_shapes(student, answer, owner, remedy)
            if selected:
                answer = microbatch.rows_of(answer)
        stands_in = selected and microbatch.empty
        return microbatch.kept.logits if stands_in else answer

    def explain_sizes(self, student_size: int, teacher_size: int) -> str:
        """Return what to do about vocabularies of unequal sizes."""
        return explain_sizes(student_size, teacher_size, self._tokens)

    def _about_sizes(self, microbatch: Microbatch, answer: Tensor) -> str | None:
        """Return what to do if only the class axes differ; None for the usual advice."""
        student, axis = microbatch.logits, microbatch.axis
        if not isinstance(microbatch.view, Mapping) or not student.ndim == answer.ndim == 3:
            return None
        return self.explain_sizes(student.shape[axis], answer.shape[axis])
