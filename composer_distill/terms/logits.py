"""The distillation term of one microbatch, and what it tells."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.teachers.outputs import check_class_axis, extract_logits
from composer_distill.telemetry.observer import Observer
from composer_distill.telemetry.values import top1_agreement
from composer_distill.terms.comparison import Comparison, labelled, selects_positions
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.positions import MaskFn, aligned_labels, kept_positions
from composer_distill.terms.task import Task, task_of
from composer_distill.terms.vocabulary import check_same_tokenizer, explain_sizes, tokenizer_of


class DistillationTerm:
    """Asks the drawn teachers and measures the student's distance from their target.

    Args:
        panel: The teachers.
        kd_loss_fn: A callable ``(student, teacher) -> tensor`` of logits.
        observer: Gathers telemetry; None for none.
        skip_nonfinite: Whether a teacher's NaN or infinity leaves the microbatch's term out.
        student_output_fn: Takes the logits out of the student's output, or None.
        mask_fn: Says which positions count; None for the task's default.
        vocab_size: How many classes are real; None for all.
    """

    def __init__(
        self,
        panel: TeacherPanel,
        kd_loss_fn: Callable[[Tensor, Tensor], Tensor],
        observer: Observer | None,
        skip_nonfinite: bool,
        student_output_fn: Callable[[Any], Any] | None,
        mask_fn: MaskFn | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.panel = panel
        self.kd_loss_fn = kd_loss_fn
        self.observer = observer
        self.skip_nonfinite = skip_nonfinite
        self.student_output_fn = student_output_fn
        self.mask_fn = mask_fn
        self.vocab_size = vocab_size
        self.task = Task()
        self._tokens: int | None = None

    def prepare(self, state: State) -> None:
        """Read the student's task, and compare its tokenizer with the teachers' at INIT.

        Raises:
            ValueError: If a teacher's tokenizer is another one.
        """
        self.task = task_of(state.model)
        tokenizer = tokenizer_of(state.model)
        for teacher, label in zip(self.panel.teachers, self.panel.labels, strict=True):
            other = tokenizer_of(teacher.model)
            reads_alike = teacher.input_fn is None and teacher.output_fn is None
            if tokenizer is not None and other is not None and reads_alike:
                check_same_tokenizer(tokenizer, other, label, self.vocab_size)
                self._tokens = len(tokenizer)

    def explain_sizes(self, student_size: int, teacher_size: int) -> str:
        """Return what to do about vocabularies of unequal sizes."""
        return explain_sizes(student_size, teacher_size, self._tokens)

    @property
    def class_axis(self) -> int:
        """The axis that holds the classes; a softmax over axis 0 runs across positions instead."""
        axis = getattr(self.kd_loss_fn, "dim", -1)
        return axis if isinstance(axis, int) and axis != 0 else -1

    @property
    def temperature(self) -> float:
        """The temperature at which probabilities are mixed: that of the loss."""
        return float(getattr(self.kd_loss_fn, "temperature", 1.0))

    def student_logits(self, outputs: Any) -> Tensor:
        """Return the logits of the student's output."""
        if self.student_output_fn is not None:
            outputs = self.student_output_fn(outputs)
        return extract_logits(outputs, "the student")

    def compare(
        self,
        view: Any,
        outputs: Any,
        task: Task | None = None,
        *,
        select: bool = True,
        with_labels: bool = False,
    ) -> Comparison:
        """Return what of a microbatch's logits is compared.

        Args:
            view: The batch as the student saw it.
            outputs: The student's output.
            task: The student's task, where it is not the one of training.
            select: Whether kept positions may be selected before the teachers answer.
            with_labels: Whether labels are wanted even where the loss needs none.
        """
        student, axis, task = self.student_logits(outputs), self.class_axis, task or self.task
        mask = kept_positions(self.mask_fn, view, outputs, student, task, axis)
        if mask is not None and not isinstance(self.kd_loss_fn, DistillationLoss):
            axis = -1 if mask.shape == student.shape[:-1] else axis
        needs_labels = getattr(self.kd_loss_fn, "needs_labels", False)
        wants_labels = with_labels or needs_labels
        labels = aligned_labels(view, student, task, axis) if wants_labels else None
        if isinstance(self.kd_loss_fn, DistillationLoss):
            check_class_axis(view, student, axis)
        if needs_labels:
            mask = labelled(mask, labels)
        is_language = isinstance(view, Mapping) and student.ndim == 3
        return Comparison(
            student,
            mask,
            labels,
            axis=axis,
            vocab_size=self.vocab_size,
            select=select and selects_positions(self.kd_loss_fn, axis, student.ndim),
            hint=self.explain_sizes if is_language else None,
        )

    def measure(
        self, state: State, view: Any, *, trust_labels: bool
    ) -> tuple[Tensor, dict[str, Tensor], int | None]:
        """Return the unweighted distillation loss of the microbatch, and values for the log.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            trust_labels: Whether the batch's labels are real, so that teachers can be judged.

        Returns:
            A scalar with a gradient path to the student; detached scalars by metric name; and how
            many positions count, or None where all do.

        Raises:
            TypeError: If ``kd_loss_fn`` returns no tensor, or ``mask_fn`` no mask.
            ValueError: If a teacher's shape differs or the loss has no gradient path.
        """
        if isinstance(self.kd_loss_fn, DistillationLoss):
            self.kd_loss_fn.resolve(state)
        judged = trust_labels and self.observer is not None and self.observer.wants_labels
        comparison = self.compare(view, state.outputs, with_labels=judged)
        student, axis = comparison.student, comparison.axis
        values: dict[str, Tensor] = {}
        drawn = self.panel.draw(int(state.timestamp.batch))
        watch = None
        if self.observer is not None:
            watch = self.observer.watch(
                values,
                student,
                lambda answer: self._distance(student, answer, comparison)[0],
                comparison.labels if judged else None,
                axis,
                alone=len(drawn) == 1,
            )
        target = self.panel.target(
            drawn, view, comparison, state, temperature=self.temperature, watch=watch
        )
        finite = self.panel.all_finite() if self.skip_nonfinite else None
        if finite is not None:
            values = {name: torch.where(finite, value, 0.0) for name, value in values.items()}
        if self.skip_nonfinite:
            values["distillation/skipped"] = student.new_zeros(()) if finite is None else ~finite
        if finite is not None:
            target = torch.where(finite, target, student.detach())
        distance, parts = self._distance(student, target, comparison)
        if comparison.empty:
            distance = comparison.zero()
        if finite is not None:
            distance = distance * finite
        _check_gradient_path(distance)
        values["loss/train/kd"] = distance.detach()
        values |= {f"distillation/kd_loss/{name}": part.detach() for name, part in parts.items()}
        if self.observer is not None and len(drawn) == 1:
            self.observer.note_loss(values, drawn[0][0], distance.detach())
        self._note(values, *comparison.logged(target))
        if comparison.empty:
            values = {name: torch.zeros_like(value) for name, value in values.items()}
        return distance, values, comparison.count

    def _note(self, values: dict[str, Tensor], student: Tensor, target: Tensor, axis: int) -> None:
        """Note what the kept positions tell beside the loss."""
        agreement = top1_agreement(student, target, axis)
        if agreement is not None:
            values["distillation/agreement"] = agreement
        if self.observer is not None:
            self.observer.note_target(values, student, target, axis)

    def _distance(
        self, student: Tensor, teacher: Tensor, comparison: Comparison
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss as a scalar, in float32 or better, and its parts where it has several."""
        loss = self.kd_loss_fn
        if isinstance(loss, DistillationLoss):
            if loss.needs_labels and comparison.labels is None:
                raise ValueError(
                    f"kd_loss_fn ({type(loss).__name__}) needs one class index for each position, "
                    "but the batch holds none: they are its second element or its 'labels'. "
                    "Use a loss without labels, such as KLDivergence."
                )
            labels = comparison.labels if loss.needs_labels else None
            parts = loss.parts(student, teacher, mask=comparison.mask, labels=labels)
            distance = _scalar(loss.combine(parts))
            named = parts if len(parts) > 1 else {}
            return distance, {name: _scalar(part) for name, part in named.items()}
        dtype = torch.promote_types(student.dtype, torch.float32)
        distance = loss(student.to(dtype), teacher.to(dtype))
        if not isinstance(distance, Tensor):
            raise TypeError(
                f"kd_loss_fn must return a tensor, got {type(distance).__name__}. "
                "Do not call .item() or float() on it."
            )
        return distance.mean(), {}


def _scalar(value: Tensor) -> Tensor:
    return value.mean() if value.ndim else value


def _check_gradient_path(distance: Tensor) -> None:
    if not distance.requires_grad:
        raise ValueError(
            "kd_loss_fn must return a tensor with a gradient path to the student's logits, got one "
            "that requires no gradient. It is called as kd_loss_fn(student, teacher): do not "
            "detach its first argument."
        )
