"""The distillation term of one microbatch, and what it tells."""

from collections.abc import Callable
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.observer import Observer
from composer_distill.outputs import class_labels, extract_logits
from composer_distill.panel import TeacherPanel
from composer_distill.telemetry import top1_agreement


class DistillationTerm:
    """Asks the drawn teachers and measures the student's distance from their target.

    Args:
        panel: The teachers.
        kd_loss_fn: A callable ``(student, teacher) -> tensor`` of logits.
        observer: Gathers telemetry; None for none.
        skip_nonfinite: Whether a teacher's NaN or infinity leaves the microbatch's term out.
        student_output_fn: Takes the logits out of the student's output, or None.
    """

    def __init__(
        self,
        panel: TeacherPanel,
        kd_loss_fn: Callable[[Tensor, Tensor], Tensor],
        observer: Observer | None,
        skip_nonfinite: bool,
        student_output_fn: Callable[[Any], Any] | None,
    ) -> None:
        self.panel = panel
        self.kd_loss_fn = kd_loss_fn
        self.observer = observer
        self.skip_nonfinite = skip_nonfinite
        self.student_output_fn = student_output_fn

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

    def measure(
        self, state: State, view: Any, *, trust_labels: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the unweighted distillation loss of the microbatch, and values for the log.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            trust_labels: Whether the batch's labels are real, so that teachers can be judged.

        Returns:
            A scalar with a gradient path to the student, and detached scalars by metric name.

        Raises:
            TypeError: If ``kd_loss_fn`` returns no tensor.
            ValueError: If a teacher's shape differs or the loss has no gradient path.
        """
        if isinstance(self.kd_loss_fn, DistillationLoss):
            self.kd_loss_fn.resolve(state)
        student, axis = self.student_logits(state.outputs), self.class_axis
        labels = class_labels(view, student, axis)
        values: dict[str, Tensor] = {}
        watch = None
        if self.observer is not None:
            detached = student.detach()
            watch = self.observer.watch(
                values,
                lambda answer: self._distance(detached, answer, labels)[0],
                labels if trust_labels else None,
                axis,
            )
        drawn = self.panel.draw(int(state.timestamp.batch))
        target = self.panel.target(
            drawn, view, student, state, temperature=self.temperature, axis=axis, watch=watch
        )
        finite = None
        if self.skip_nonfinite:
            finite = self.panel.all_finite(drawn)
            values["distillation/skipped"] = ~finite
            target = torch.where(finite, target, student.detach())
        distance, parts = self._distance(student, target, labels)
        if finite is not None:
            distance = distance * finite
        _check_gradient_path(distance)
        values["loss/train/kd"] = distance.detach()
        values |= {f"distillation/kd_loss/{name}": part.detach() for name, part in parts.items()}
        agreement = top1_agreement(student, target, axis)
        if agreement is not None:
            values["distillation/agreement"] = agreement
        if self.observer is not None:
            self.observer.note_target(values, student, target, axis)
        return distance, values

    def _distance(
        self, student: Tensor, teacher: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss as a scalar, in float32 or better, and its parts where it has several."""
        loss = self.kd_loss_fn
        if isinstance(loss, DistillationLoss):
            if loss.needs_labels and labels is None:
                raise ValueError(
                    f"kd_loss_fn ({type(loss).__name__}) needs one class index for each position, "
                    "but the batch holds none: they are its second element or its 'labels'. "
                    "Use a loss without labels, such as KLDivergence."
                )
            parts = loss.parts(student, teacher, labels=labels)
            return loss.combine(parts), parts if len(parts) > 1 else {}
        dtype = torch.promote_types(student.dtype, torch.float32)
        distance = loss(student.to(dtype), teacher.to(dtype))
        if not isinstance(distance, Tensor):
            raise TypeError(
                f"kd_loss_fn must return a tensor, got {type(distance).__name__}. "
                "Do not call .item() or float() on it."
            )
        return distance.mean(), {}


def _check_gradient_path(distance: Tensor) -> None:
    if not distance.requires_grad:
        raise ValueError(
            "kd_loss_fn must return a tensor with a gradient path to the student's logits, got one "
            "that requires no gradient. It is called as kd_loss_fn(student, teacher): do not "
            "detach its first argument."
        )
