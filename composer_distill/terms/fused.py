"""The distillation term from hidden states and output embeddings, where no logits are compared."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.losses import FusedLinearKL
from composer_distill.notes import noted
from composer_distill.teachers.head_recorder import Head, HeadRecorder
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.telemetry.chunks import ChunkedTelemetry
from composer_distill.telemetry.observer import Observer
from composer_distill.terms.comparison import check_shapes
from composer_distill.terms.guard import FiniteGuard
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.protocol import Measured
from composer_distill.terms.student import StudentReader
from composer_distill.terms.vocabulary import cut_vocabulary


class FusedTerm:
    """Measures the student's distance from its teachers without the teachers' logits.

    The student's hidden states are recorded in its own forward, and each teacher's in its own;
    :class:`FusedLinearKL` turns both into the loss a few positions at a time. The student's logits
    exist, since its own loss reads them, but neither their gradient nor a teacher's logits do.

    Args:
        panel: The teachers.
        reader: Reads the student.
        loss: The fused loss.
        weight: The term's weight, from the Trainer's state.
        observer: Notes losses by teacher; None for no telemetry but the agreement.
        on_nonfinite: As in ``Distillation``.

    Raises:
        ValueError: If an option needs logits.
    """

    weight_name = "distillation/kd_loss_weight"
    listens = True

    def __init__(
        self,
        panel: TeacherPanel,
        reader: StudentReader,
        loss: FusedLinearKL,
        weight: Callable[[State], float],
        observer: Observer | None,
        on_nonfinite: str,
    ) -> None:
        _check_options(panel, on_nonfinite)
        self.panel = panel
        self.reader = reader
        self.weight = weight
        self.observer = observer
        self.guard = FiniteGuard("or use KLDivergence, which takes on_nonfinite='skip'.")
        self._loss = loss
        self._student: HeadRecorder | None = None

    def prepare(self, state: State) -> None:
        """Find the student's output embedding, and do what any term does at INIT.

        Raises:
            ValueError: If it has none, or a teacher's tokenizer is another one.
        """
        self.reader.prepare(state, self.panel.teachers, self.panel.labels)
        self._student = HeadRecorder(state.model, "the student", skip=False)

    def start_forward(self, state: State) -> None:
        """BEFORE_FORWARD: begin to listen to the student's output embedding."""
        if self._student is not None:
            self._student.__enter__()

    def end_forward(self) -> None:
        """AFTER_FORWARD: listen no more."""
        if self._student is not None:
            self._student.__exit__()

    def check(self, batch: int) -> None:
        """Raise ValueError where a teacher's answer to the batch held NaN or infinity."""
        self.guard.check(batch)

    def forget(self) -> None:
        """Listen no more, and keep nothing of a batch."""
        self.guard.forget()
        if self._student is not None:
            self._student.__exit__()
            self._student.forget()

    def measure(self, state: State, view: Any, outputs: Any, *, trust_labels: bool) -> Measured:
        """Return the loss, values for the log and the number of positions that count.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            outputs: The student's output, as its loss was given it.
            trust_labels: Not read: no logits are judged.

        Raises:
            ValueError: If student or teacher has no head to be read, or their sizes differ.
        """
        with noted("kd_loss_fn", self._loss, " in a schedule"):
            self._loss.resolve(state)
        logits = self.reader.logits(outputs)
        self.reader.ask_own_loss(state.loss, view, outputs, logits)
        microbatch = self.reader.read(view, outputs, logits)
        if self._student is None:
            raise RuntimeError("FusedTerm.prepare was not called. Add the algorithm to a Trainer.")
        drawn = self.panel.draw(int(state.timestamp.batch))
        answers = [(share, index, self._ask(index, microbatch, state)) for index, share in drawn]
        try:
            whole = self._student.take(logits)
            ours = self._cut(whole, "the student")
            heads = [
                (share, self._fit(index, answer, ours, len(whole.weight)))
                for share, index, answer in answers
            ]
            return self._compare(ours, heads, microbatch.mask, drawn[0][0])
        finally:
            self._student.forget()

    def _compare(
        self, ours: Head, heads: Sequence[tuple[float, Head]], mask: Tensor | None, first: int
    ) -> Measured:
        """Return the loss of two heads, and what their logits tell chunk by chunk."""
        theirs = mean_head(heads, ours.hidden.dtype)
        told = ChunkedTelemetry(tells=self.observer is not None, device=ours.hidden.device)
        distance = self._loss(
            ours.hidden,
            ours.weight,
            theirs.hidden,
            theirs.weight,
            mask,
            student_bias=ours.bias,
            teacher_bias=theirs.bias,
            student_cap=ours.cap,
            teacher_cap=theirs.cap,
            watch=told,
        )
        values = {f"distillation/{name}": value for name, value in told.values().items()}
        values["loss/train/kd"] = distance.detach()
        if self.observer is not None and len(heads) == 1:
            self.observer.note_loss(values, first, distance.detach())
        return Measured(distance, values, None if mask is None else int(mask.sum()))

    def _ask(self, index: int, microbatch: Microbatch, state: State) -> Head:
        """Return a teacher's head."""
        source, label = self.panel.sources[index], self.panel.labels[index]
        if not isinstance(source, LiveTeacher):
            raise TypeError(f"{label}: it has no hidden states. Use KLDivergence.")
        whole = replace(microbatch, mask=None)  # which it does not read
        found, logits = self.panel.timed(source, source.head, whole, state)
        # One position's logits have met each row of the embedding
        self.guard.note(label, found.hidden, logits)
        return found

    def _fit(self, index: int, found: Head, ours: Head, classes: int) -> Head:
        """Return a teacher's head of the real vocabulary, checked against the student's."""
        label = self.panel.labels[index]
        remedy = self.reader.explain_sizes(classes, len(found.weight))
        answer = self._cut(found, label)
        if answer.hidden.shape[:-1] != ours.hidden.shape[:-1]:
            raise ValueError(
                f"{label}: it answers positions of shape {tuple(answer.hidden.shape[:-1])} "
                f"where the student answers {tuple(ours.hidden.shape[:-1])}. Use KLDivergence "
                "with Teacher(..., input_fn=...) or student_output_fn."
            )
        check_shapes(_stand_in(ours), _stand_in(answer), label, remedy)
        return answer

    def _cut(self, head: Head, owner: str) -> Head:
        """Return the head of the real vocabulary."""
        size = self.reader.vocab_size
        weight = cut_vocabulary(head.weight, size, owner, axis=0)
        bias = None if head.bias is None else head.bias[:size]
        return head._replace(weight=weight, bias=bias)


def _check_options(panel: TeacherPanel, on_nonfinite: str) -> None:
    """Refuse options that need logits."""
    for teacher, label in zip(panel.teachers, panel.labels, strict=True):
        if not teacher.answers_as_the_student:
            raise ValueError(
                f"{label}: FusedLinearKL reads hidden states, so that input_fn, output_fn and "
                "microbatch_size have no place in it. Leave them out, or use KLDivergence."
            )
    answering = panel.n_sampled or len(panel.teachers)
    if panel.combine == "probabilities" and answering > 1:
        raise ValueError(
            f"combine='probabilities' mixes the logits of {answering} teachers, which "
            "FusedLinearKL never has. Use combine='logits', n_teachers_to_sample=1 or "
            "KLDivergence."
        )
    if on_nonfinite == "skip":
        raise ValueError(
            "on_nonfinite='skip' replaces a teacher's logits, which FusedLinearKL never has. "
            "Use on_nonfinite='raise' or KLDivergence."
        )


def mean_head(heads: Sequence[tuple[float, Head]], dtype: torch.dtype) -> Head:
    """Return one head whose logits are the weighted mean of several heads' logits.

    A sum of products is one product: of the hidden states side by side with the weights side by
    side.

    Args:
        heads: ``(share, head)`` of each teacher; shares sum to 1.
        dtype: The type of the result.

    Raises:
        ValueError: If there are several and one caps its logits: a mean of caps is no product.

    Shape:
        - heads: hidden ``(B, T, H_i)``, weight ``(V, H_i)``.
        - result: hidden ``(B, T, H)``, weight ``(V, H)``, with H the sum of the ``H_i``.

    Example:
        >>> weight = torch.tensor([[1.0], [0.0]])
        >>> a, b = (Head(torch.full((1, 1, 1), x), x * weight, None) for x in (1.0, 3.0))
        >>> mean = mean_head([(0.5, a), (0.5, b)], torch.float32)
        >>> mean.hidden @ mean.weight.T
        tensor([[[5., 0.]]])
    """
    if len(heads) == 1 and heads[0][0] == 1.0:
        hidden, weight, bias, cap = heads[0][1]
        bias = None if bias is None else bias.to(dtype)
        return Head(hidden.to(dtype), weight.to(dtype), bias, cap)
    if any(head.cap is not None for _, head in heads):
        raise ValueError(
            f"FusedLinearKL averages {len(heads)} teachers by the product of hidden states and "
            "weights side by side, which a cap on one's logits does not allow. Use "
            "n_teachers_to_sample=1 or KLDivergence."
        )
    hidden = torch.cat([share * head.hidden.to(dtype) for share, head in heads], dim=-1)
    weight = torch.cat([head.weight.to(dtype) for _, head in heads], dim=1)
    biases = [share * head.bias.to(dtype) for share, head in heads if head.bias is not None]
    return Head(hidden, weight, torch.stack(biases).sum(0) if biases else None)


def _stand_in(head: Head) -> Tensor:
    """Return a tensor of the shape of a head's logits that holds one number."""
    return head.hidden.new_empty(()).expand(*head.hidden.shape[:-1], len(head.weight))
