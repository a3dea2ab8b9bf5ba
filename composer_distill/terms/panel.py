"""The teachers of one run together: drawn for a batch, asked one by one, combined to one target."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from composer.core import State
from torch import Tensor

from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.roster import AnyTeacher, at_work, labels_of
from composer_distill.teachers.sharding import Sharding
from composer_distill.teachers.stopwatch import Stopwatch
from composer_distill.terms.combining import mean_logits, mean_probabilities
from composer_distill.terms.sampling import sample_teachers

_Answer = TypeVar("_Answer")

Receive = Callable[[int, Tensor], Tensor]
"""From a teacher's index and its raw logits to what is compared of them."""


class TeacherPanel:
    """Asks the teachers that a batch draws and makes one target of their answers.

    Args:
        teachers: The teachers, in the order in which errors and logs count them.
        n_sampled: How many answer a batch; None: all.
        seed: Seed of the draw.
        combine: ``'logits'`` or ``'probabilities'``.
    """

    def __init__(
        self, teachers: Sequence[AnyTeacher], n_sampled: int | None, seed: int, combine: str
    ) -> None:
        self.teachers = tuple(teachers)
        self.labels = labels_of(self.teachers)
        self.sources = at_work(self.teachers)
        self.n_sampled = n_sampled
        self.seed = seed
        self.combine = combine
        self._stopwatch = Stopwatch(torch.device("cpu"))

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Make the teachers ready, at INIT.

        Args:
            state: The Trainer's state.
            sharding: Whether teachers are whole on each rank; see ``Distillation``.

        Raises:
            ValueError: If one can't be.
        """
        self._stopwatch = Stopwatch(state.device.tensor_to_device(torch.empty(0)).device)
        for source in self.sources:
            source.prepare(state, sharding)

    def settle(self) -> None:
        """Bring the teachers back to the device, if they had left it."""
        for source in self.sources:
            source.settle()

    def leave(self) -> None:
        """Free the device of the teachers: no batch will ask them any more."""
        for source in self.sources:
            source.leave()

    def draw(self, batch: int, *, everyone: bool = False) -> list[tuple[int, float]]:
        """Return ``(index, share)`` of the teachers that answer batch number ``batch``."""
        weights = [source.weight for source in self.sources]
        return sample_teachers(weights, None if everyone else self.n_sampled, self.seed, batch)

    def target(
        self,
        drawn: Sequence[tuple[int, float]],
        microbatch: Microbatch,
        state: State,
        *,
        temperature: float,
        receive: Receive,
    ) -> Tensor:
        """Return the drawn teachers' combined logits, holding one answer at a time.

        Args:
            drawn: ``(index, share)`` of the teachers to ask.
            microbatch: What the student saw and answered.
            state: The Trainer's state.
            temperature: At which probabilities are mixed; without effect on ``'logits'``.
            receive: Takes each raw answer and gives what is compared of it.
        """

        def answers() -> Iterator[tuple[float, Tensor]]:
            for index, share in drawn:
                answer = self.timed(self.sources[index].target, microbatch, state)
                yield share, receive(index, answer)

        if self.combine == "logits":
            return mean_logits(answers())
        return mean_probabilities(answers(), temperature, microbatch.compared.axis)

    def timed(
        self,
        ask: Callable[[Microbatch, State], _Answer],
        microbatch: Microbatch,
        state: State,
    ) -> _Answer:
        """Return what ``ask`` answers, its time counted as the teachers'."""
        start = self._stopwatch.start()
        answer = ask(microbatch, state)
        self._stopwatch.stop(start)
        return answer

    def forget(self) -> None:
        """Forget the time of a batch that ended, or of a pass that did not complete."""
        self._stopwatch.reset()

    def seconds(self) -> float:
        """Return how long the teachers took in this batch."""
        return self._stopwatch.seconds()
