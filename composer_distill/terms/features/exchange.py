"""What the terms of features of one run share: one forward of the student, one of each teacher."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from composer.core import State
from torch import Tensor, nn

from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.outputs import call_model
from composer_distill.terms.features.layers import Layer
from composer_distill.terms.features.recorder import Recorder
from composer_distill.terms.panel import TeacherPanel


class Exchange:
    """Listens to the student and its teachers for all terms together.

    The hooks stand from BEFORE_FORWARD to AFTER_FORWARD on the student, and around each forward of
    a teacher, which answers the logits' term and those of features at once.

    Args:
        panel: The teachers.
    """

    def __init__(self, panel: TeacherPanel) -> None:
        self.panel = panel
        self._student = Recorder("the student")
        self._listeners = [_TeacherListener(label) for label in panel.labels]
        self._pending: set[object] = set()
        self._is_open = False

    def prepare(self) -> None:
        """Have the teachers tell what their layers give, at INIT.

        Raises:
            TypeError: If a source of targets is no model at work.
        """
        for source, listener in zip(self.panel.sources, self._listeners, strict=True):
            if not isinstance(source, LiveTeacher):
                raise TypeError(
                    f"{source.label}: it holds logits alone, so it has no layers for "
                    "feature_terms. Pass the model itself, or leave feature_terms out."
                )
            source.call = listener.call

    def listen(
        self, term: object, student: Iterable[Layer], teachers: Sequence[Iterable[Layer]]
    ) -> None:
        """BEFORE_FORWARD: begin to listen for a term.

        Args:
            term: Whose layers they are.
            student: The student's layers.
            teachers: The layers of each teacher.
        """
        if not self._is_open:
            self.forget()
            self._is_open = True
        self._pending.add(term)
        self._student.listen(tap for layer in student for tap in layer.taps)
        for listener, layers in zip(self._listeners, teachers, strict=True):
            listener.wanted |= dict.fromkeys(layers)

    def stop(self) -> None:
        """AFTER_FORWARD: listen to the student no more."""
        self._is_open = False
        self._student.stop()

    def forget(self) -> None:
        """Listen no more, and keep nothing."""
        self.stop()
        self._pending.clear()
        self._student.forget()
        for listener in self._listeners:
            listener.forget()

    def done(self, term: object) -> None:
        """Tell that a term has measured the microbatch: after the last one nothing is kept."""
        self._pending.discard(term)
        if not self._pending:
            self.forget()

    def of_student(self, layer: Layer, model: nn.Module, outputs: Any) -> Any:
        """Return the student's features."""
        return layer.read(model, outputs, self._student, "the student")

    def of_teacher(self, index: int, layer: Layer, microbatch: Microbatch, state: State) -> Any:
        """Return a teacher's features; it runs now unless it has run for its logits.

        Args:
            index: Which teacher.
            layer: Its layer.
            microbatch: What the student saw.
            state: The Trainer's state.
        """
        listener, source = self._listeners[index], self.panel.sources[index]
        if not listener.heard and isinstance(source, LiveTeacher):
            whole = any(wanted.function is not None for wanted in listener.wanted)
            self.panel.timed(source, partial(source.run, whole=whole), microbatch, state)
        return listener.value(layer)


class _TeacherListener:
    """Stands between a teacher and its model, and keeps what layers gave in each piece of a batch.

    Args:
        owner: Which teacher it is, for errors.
    """

    def __init__(self, owner: str) -> None:
        self.wanted: dict[Layer, None] = {}
        self.heard: dict[Layer, list[Any]] = {}
        self._owner = owner
        self._recorder = Recorder(owner)

    def call(self, model: nn.Module, batch: Any, **options: Any) -> Any:
        """Run the model, and keep what is wanted of it."""
        if not self.wanted:
            return call_model(model, batch, **options)
        self._recorder.listen(tap for layer in self.wanted for tap in layer.taps)
        try:
            outputs = call_model(model, batch, **options)
            self._recorder.stop()
            for layer in self.wanted:
                value = layer.read(model, outputs, self._recorder, self._owner)
                self.heard.setdefault(layer, []).append(value)
        finally:
            self._recorder.forget()
        return outputs

    def value(self, layer: Layer) -> Any:
        """Return what a layer gave for the whole microbatch, without a graph."""
        return joined(self.heard[layer])

    def forget(self) -> None:
        """Want nothing, and keep nothing."""
        self.wanted, self.heard = {}, {}


def joined(pieces: Sequence[Any]) -> Any:
    """Return features, or several of them, of all pieces of a batch, without a graph."""
    if not isinstance(pieces[0], Tensor):
        return tuple(joined(parts) for parts in zip(*pieces, strict=True))
    return pieces[0].detach() if len(pieces) == 1 else torch.cat([x.detach() for x in pieces])
