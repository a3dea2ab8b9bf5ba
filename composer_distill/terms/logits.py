"""The distillation term of logits: the student's distance from its teachers' target."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.notes import noted
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.telemetry.observer import Observer, Watch
from composer_distill.telemetry.parts import of_a_part
from composer_distill.telemetry.values import top1_agreement
from composer_distill.terms.distance import check_gradient_path, distance
from composer_distill.terms.guard import FiniteGuard
from composer_distill.terms.judging import TeacherJudge
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.protocol import Measured
from composer_distill.terms.reading import MicrobatchReader
from composer_distill.terms.routed import Asked, ask_routed
from composer_distill.terms.student import StudentReader
from composer_distill.terms.users_loss import GradientShield, UsersLoss

_REMEDY = "map its outputs with Teacher(..., output_fn=...), or pass on_nonfinite='skip'."


class LogitsTerm:
    """Asks the drawn teachers and measures the student's distance from their target.

    Args:
        panel: The teachers.
        reader: Reads the student.
        kd_loss_fn: A callable ``(student, teacher) -> tensor`` of logits.
        weight: The term's weight, from the Trainer's state.
        observer: Gathers telemetry; None for none.
        on_nonfinite: As in ``Distillation``.
        judge: Which answers are good enough to learn from; None for all.
    """

    weight_name = "distillation/kd_loss_weight"
    listens = False

    def __init__(
        self,
        panel: TeacherPanel,
        reader: StudentReader,
        kd_loss_fn: Any,
        weight: Callable[[State], float],
        observer: Observer | None,
        on_nonfinite: str,
        judge: TeacherJudge | None = None,
    ) -> None:
        self.panel = panel
        self.reader = reader
        self.kd_loss_fn = kd_loss_fn
        self.weight = weight
        self.observer = observer
        self.judge = judge
        self.guard = FiniteGuard(_REMEDY)
        reading = MicrobatchReader(reader, kd_loss_fn, panel, judge)
        self.read, self._classes = reading.read, reading.classes
        self._users_loss = UsersLoss(kd_loss_fn)
        self._skips = on_nonfinite == "skip"

    def prepare(self, state: State) -> None:
        """Read the student's task, and compare its tokenizer with the teachers', at INIT."""
        self.reader.prepare(state, self.panel.teachers, self.panel.labels)

    def start_forward(self, state: State) -> None:
        """Do nothing."""

    def end_forward(self) -> None:
        """Do nothing."""

    def check(self, batch: int) -> None:
        """Raise ValueError where a teacher's answer, or the loss of finite ones, was not finite."""
        self.guard.tell(batch) if self._skips else self.guard.check(batch)

    def forget(self) -> None:
        """Forget what was noted of a batch."""
        self.guard.forget()

    @property
    def temperature(self) -> float:
        """The temperature at which probabilities are mixed: that of the loss."""
        return float(getattr(self.kd_loss_fn, "temperature", 1.0))

    def measure(self, state: State, view: Any, outputs: Any, *, trust_labels: bool) -> Measured:
        """Return the unweighted distillation loss of the microbatch, and values for the log.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            outputs: The student's output, as its loss was given it.
            trust_labels: Whether the batch's labels are real, so that teachers can be judged.

        Raises:
            TypeError: If ``kd_loss_fn`` returns no tensor, or ``mask_fn`` no mask.
            ValueError: If a teacher's shape differs or the loss has no gradient path.
        """
        if isinstance(self.kd_loss_fn, DistillationLoss):
            with noted("kd_loss_fn", self.kd_loss_fn, " in a schedule"):
                self.kd_loss_fn.resolve(state)
        judged = trust_labels and self.observer is not None and self.observer.wants_labels
        microbatch = self.read(view, outputs, own_loss=state.loss, with_labels=judged)
        drawn = self.panel.draw(int(state.timestamp.batch))
        values: dict[str, Tensor] = {}
        asked, target, share = self._ask(drawn, microbatch, state, values, judged=judged)
        finite = self.guard.all_finite() if self._skips else None
        if finite is not None:
            values = {name: torch.where(finite, value, 0.0) for name, value in values.items()}
            target = torch.where(finite, target, asked.compared.logits.detach())
        told: dict[str, Tensor] = {}  # of what has a teacher
        loss, parts = self._judged_distance(asked, target, told)
        if share is not None:
            loss, parts = loss * share, {name: part * share for name, part in parts.items()}
        if finite is not None:
            loss = loss * finite
        check_gradient_path(loss)
        if self._skips:
            values["distillation/skipped"] = loss.new_zeros(()) if finite is None else ~finite
        values["loss/train/kd"] = loss.detach()
        values |= {f"distillation/kd_loss/{name}": part.detach() for name, part in parts.items()}
        self._note(told, asked, target)
        part = share
        if self._skips:  # what was left out says nothing of the teachers
            answered = loss.new_ones(()) if finite is None else finite.to(loss.dtype)
            part = answered if share is None else answered * share
        values |= told if part is None else of_a_part(told, part)
        if self.observer is not None and len(drawn) == 1 and share is None:
            self.observer.note_loss(values, drawn[0][0], loss.detach())
        if microbatch.empty:
            values = {name: torch.zeros_like(value) for name, value in values.items()}
        return Measured(loss, values, microbatch.count)

    def _judged_distance(
        self, microbatch: Microbatch, target: Tensor, values: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss and its parts; where answers are judged, of the good ones alone."""
        share: Tensor | float = 1.0
        if self.judge is not None:
            microbatch, target, share = self.judge.judge(microbatch, target)
            values["distillation/judged_good"] = microbatch.logits.new_zeros(()) + share
        compared = microbatch.compared
        shield = GradientShield(compared.logits) if self._skips else None
        logits = compared.logits if shield is None else shield.logits
        loss, parts = distance(self._users_loss, compared._replace(logits=logits), target)
        if microbatch.empty:
            loss = microbatch.zero()
        self.guard.note_loss(loss, compared.logits)
        loss = loss if shield is None else shield.close(loss)
        if self.judge is None:
            return loss, parts
        return loss * share, {name: part * share for name, part in parts.items()}

    def target(
        self,
        drawn: Sequence[tuple[int, float]],
        microbatch: Microbatch,
        state: State,
        watch: Watch | None,
    ) -> Tensor:
        """Return the drawn teachers' target in the shape of what is compared.

        Args:
            drawn: ``(index, share)`` of the teachers to ask.
            microbatch: What the student saw and answered.
            state: The Trainer's state.
            watch: Sees each answer, for logs.

        Raises:
            ValueError: If an answer's shape does not fit the student's.
        """

        def receive(index: int, answer: Tensor) -> Tensor:
            return self._receive(index, answer, microbatch, watch)

        self.guard.start()
        temperature = self.temperature
        return self.panel.target(drawn, microbatch, state, temperature=temperature, receive=receive)

    def _receive(
        self, index: int, answer: Tensor, microbatch: Microbatch, watch: Watch | None
    ) -> Tensor:
        """Return what is compared of a teacher's answer, checked and noted."""
        label = self.panel.labels[index]
        logits = self.reader.fit(answer, microbatch, label)
        # A softmax computes a class that is ruled out; any other loss may give NaN
        self.guard.note(label, logits, axis=microbatch.compared.axis if self._classes else None)
        if watch is not None:
            watch(index, logits)
        return logits

    def _ask(
        self,
        drawn: Sequence[tuple[int, float]],
        microbatch: Microbatch,
        state: State,
        values: dict[str, Tensor],
        *,
        judged: bool,
    ) -> Asked:
        """Return the drawn teachers' target, and of which positions; note what each says."""
        routing = self.panel.routing
        if routing is None:
            watch = self._watch(values, microbatch, judged=judged, alone=len(drawn) == 1)
            return Asked(microbatch, self.target(drawn, microbatch, state, watch))

        def hear(index: int, answer: Tensor, part: Microbatch, share: float) -> Tensor:
            own: dict[str, Tensor] = {}
            watch = self._watch(own, part, judged=judged, alone=False)
            logits = self._receive(index, answer, part, watch)
            values.update(of_a_part(own, share))
            return logits

        self.guard.start()
        return ask_routed(self.panel, routing, drawn, microbatch, state, self.temperature, hear)

    def _watch(
        self, values: dict[str, Tensor], microbatch: Microbatch, *, judged: bool, alone: bool
    ) -> Watch | None:
        """Return what notes each teacher's answer into ``values``, if anybody wants to know."""
        if self.observer is None:
            return None
        compared = microbatch.compared

        def measure(answer: Tensor) -> Tensor:
            with self._users_loss.untouched():
                return distance(self._users_loss, compared, answer)[0]

        return self.observer.watch(
            values,
            compared if judged else compared._replace(labels=None),
            measure,
            alone=alone,
            classes=microbatch.classes,
        )

    def _note(self, values: dict[str, Tensor], microbatch: Microbatch, target: Tensor) -> None:
        """Note what the kept positions tell beside the loss and its parts."""
        if not microbatch.classes:
            return
        kept, target = microbatch.kept, microbatch.keep(target)
        agreement = top1_agreement(kept.logits, target, kept.axis)
        if agreement is not None:
            values["distillation/agreement"] = agreement
        if self.observer is not None:
            self.observer.note_target(values, kept.logits, target, kept.axis)
