"""The teachers of one run at work: drawn, asked without leaving a trace, combined, watched."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from composer.core import State, get_precision_context
from torch import Tensor

from composer_distill.losses.precision import can_be_read
from composer_distill.teachers import Teacher
from composer_distill.teachers.heads import Head, HeadRecorder, only_at
from composer_distill.teachers.outputs import call_model, extract_logits
from composer_distill.teachers.roster import labels_of
from composer_distill.teachers.sharding import Sharding, is_to_be_sharded, reshard, shard
from composer_distill.teachers.stopwatch import Stopwatch
from composer_distill.teachers.streams import untouched_streams
from composer_distill.telemetry.observer import Watch
from composer_distill.terms.combining import mean_logits, mean_probabilities
from composer_distill.terms.comparison import Comparison
from composer_distill.terms.sampling import sample_teachers


class TeacherPanel:
    """Asks the teachers that a batch draws and makes one target of their answers.

    Args:
        teachers: The teachers, in the order in which errors and logs count them.
        n_sampled: How many answer a batch; None: all.
        seed: Seed of the draw.
        combine: ``'logits'`` or ``'probabilities'``.
    """

    def __init__(
        self, teachers: Sequence[Teacher], n_sampled: int | None, seed: int, combine: str
    ) -> None:
        self.teachers = tuple(teachers)
        self.labels = labels_of(self.teachers)
        self.n_sampled = n_sampled
        self.seed = seed
        self.combine = combine
        self._sharded: set[int] = set()
        self._device = torch.device("cpu")
        self._settled = False
        self._extremes: dict[str, list[Tensor]] = {}  # that may be none, of the pass over the batch
        self._latest: list[Tensor] = []  # of them, those of the microbatch
        self._recorders: dict[int, HeadRecorder] = {}
        self._stopwatch = Stopwatch(self._device)

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Freeze the teachers, and place or shard them, at INIT.

        Args:
            state: The Trainer's state.
            sharding: Whether teachers are whole on each rank; see ``Distillation``.

        Raises:
            ValueError: If they can't be sharded as asked, or have no weights.
        """
        self._device = state.device.tensor_to_device(torch.empty(0)).device
        self._stopwatch = Stopwatch(self._device)
        for index, (teacher, label) in enumerate(zip(self.teachers, self.labels, strict=True)):
            teacher.freeze()
            if is_to_be_sharded(teacher.model, sharding, state, label):
                teacher.place(torch.device("cpu"))
                shard(teacher.model, state)
                self._sharded.add(index)
            else:
                teacher.place(self._device)
        self._settled = True

    def settle(self) -> None:
        """Bring the teachers back to the device, if they had left it."""
        if not self._settled:
            self._settled = True
            for index, teacher in enumerate(self.teachers):
                if index not in self._sharded:
                    teacher.place(self._device)

    def leave(self) -> None:
        """Free the device of the teachers: no batch will ask them any more."""
        if self._settled and self._device.type != "cpu":
            self._settled = False
            for index, teacher in enumerate(self.teachers):
                if index not in self._sharded:
                    teacher.to_host()

    def draw(self, batch: int, *, everyone: bool = False) -> list[tuple[int, float]]:
        """Return ``(index, share)`` of the teachers that answer batch number ``batch``."""
        weights = [teacher.weight for teacher in self.teachers]
        return sample_teachers(weights, None if everyone else self.n_sampled, self.seed, batch)

    def ask(self, index: int, view: Any, comparison: Comparison, state: State) -> Tensor:
        """Return one teacher's compared logits, in eval mode and in the Trainer's precision.

        Args:
            index: Which teacher.
            view: The batch as the student saw it; it is left unchanged.
            comparison: What of the student's logits is compared, which the answer must fit.
            state: The Trainer's state.

        Raises:
            ValueError: If the shape differs from the student's.
        """
        teacher, label = self.teachers[index], self.labels[index]
        kept = comparison.head_mask if teacher.answers_as_the_student else None
        device = comparison.student.device
        logits = self._forward(index, view, state, device, only_at(teacher.model, kept))
        logits = comparison.teacher(logits, label)
        self._note_extremes(label, logits)
        return logits

    def ask_head(self, index: int, view: Any, state: State, device: torch.device) -> Head:
        """Return one teacher's hidden states and output embedding, without its logits.

        Args:
            index: Which teacher.
            view: The batch as the student saw it; it is left unchanged.
            state: The Trainer's state.
            device: Where the student's logits are.

        Raises:
            ValueError: If the teacher's logits are not the product of the two.
        """
        if index not in self._recorders:
            model = self.teachers[index].model
            self._recorders[index] = HeadRecorder(model, self.labels[index], skip=True)
        recorder = self._recorders[index]
        logits = self._forward(index, view, state, device, recorder)
        head = recorder.take(logits)
        # One position's logits have met each row of the embedding
        self._note_extremes(self.labels[index], head.hidden, logits)
        return head

    def _forward(
        self,
        index: int,
        view: Any,
        state: State,
        device: torch.device,
        around: AbstractContextManager[Any],
    ) -> Tensor:
        """Return a teacher's raw logits, its forward run inside of ``around``."""
        teacher, label = self.teachers[index], self.labels[index]
        # fp8 off, as in Composer's own evaluation: it needs sizes divisible by 16
        precision = get_precision_context(
            state.precision, state.precision_config, fp8_autocast_enabled=False
        )
        extract = partial(extract_logits, owner=label)
        start = self._stopwatch.start()
        with untouched_streams(device), torch.no_grad(), precision, around:
            try:
                logits = teacher.forward(view, call_model, extract)
            except Exception as error:
                _add_name(error, label)
                raise
            if index in self._sharded:
                reshard(teacher.model)
        self._stopwatch.stop(start)
        # A teacher may turn gradients or inference mode on in its own forward
        return logits.clone() if logits.is_inference() else logits.detach()

    def target(
        self,
        drawn: Sequence[tuple[int, float]],
        view: Any,
        comparison: Comparison,
        state: State,
        *,
        temperature: float,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return the drawn teachers' combined logits, holding one answer at a time.

        Args:
            drawn: ``(index, share)`` of the teachers to ask.
            view: The batch as the student saw it.
            comparison: What of the student's logits is compared.
            state: The Trainer's state.
            temperature: At which probabilities are mixed; without effect on ``'logits'``.
            watch: Sees each answer, for logs.
        """

        def answers() -> Iterator[tuple[float, Tensor]]:
            for index, share in drawn:
                logits = self.ask(index, view, comparison, state)
                if watch is not None:
                    watch(index, logits)
                yield share, logits

        self._latest = []
        if self.combine == "logits":
            return mean_logits(answers())
        return mean_probabilities(answers(), temperature, comparison.axis)

    def forget(self) -> None:
        """Forget what was noted of a batch that ended, or of a pass that did not complete."""
        self._extremes, self._latest = {}, []
        self._stopwatch.reset()

    def seconds(self) -> float:
        """Return how long the teachers took in this batch."""
        return self._stopwatch.seconds()

    def all_finite(self) -> Tensor | None:
        """Return whether the latest target's answers were finite; None where all are known to be.

        It does not wait for the device.
        """
        return torch.stack(self._latest).isfinite().all() if self._latest else None

    def check_finite(self, batch: int) -> None:
        """Stop on a broken teacher: one synchronisation a batch.

        Raises:
            ValueError: Naming the first teacher whose logits held NaN or infinity.
        """
        noted, self._extremes = self._extremes, {}
        if not noted:
            return
        values = iter(torch.stack([x for xs in noted.values() for x in xs]).tolist())
        for label, extremes in noted.items():
            if not all(math.isfinite(next(values)) for _ in extremes):
                remedy = (
                    "or use KLDivergence, which takes on_nonfinite='skip'."
                    if self._recorders
                    else "map its outputs with Teacher(..., output_fn=...), or pass "
                    "on_nonfinite='skip'."
                )
                raise ValueError(
                    f"{label}: its logits hold NaN or infinity at batch {batch}. Check its "
                    f"checkpoint and the precision, {remedy}"
                )

    def _note_extremes(self, label: str, *answers: Tensor) -> None:
        """Keep the least and the largest value, both finite where all values are.

        Where the host sees the values it first looks at their sum, which is finite only if they
        are, though it may be infinite besides.
        """
        for answer in answers:
            if can_be_read(answer) and math.isfinite(answer.sum().item()):
                continue
            both = (answer if answer.numel() else answer.new_zeros(1)).aminmax()
            self._extremes.setdefault(label, []).extend(both)
            self._latest.extend(both)


def _add_name(error: Exception, label: str) -> None:
    """Say which teacher an error of its forward comes from; its kind and text stay as they are.

    Composer must still know an out-of-memory error for what it is. Before Python 3.11 errors take
    no notes.
    """
    if hasattr(error, "add_note"):
        error.add_note(  # pyright: ignore[reportAttributeAccessIssue]
            f"{label} failed on the student's batch. Other inputs go to it by "
            "Teacher(..., input_fn=...), another type by Teacher(..., dtype=...)."
        )
