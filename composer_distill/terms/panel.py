"""The teachers of one run together: drawn for a batch, asked one by one, combined to one target."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from composer.core import State
from torch import Tensor

from composer_distill.schedule import ALWAYS, Window, weight_now
from composer_distill.teachers.lane import lane_of
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.roster import AnyTeacher, at_work, labels_of, made_of_student
from composer_distill.teachers.sharding import Sharding
from composer_distill.teachers.source import Early, Follower, Source, absent
from composer_distill.teachers.stopwatch import Stopwatch
from composer_distill.terms.combining import mean_logits, mean_probabilities
from composer_distill.terms.routing import check_sharded, routing_of
from composer_distill.terms.sampling import sample_teachers

_Answer = TypeVar("_Answer")
_NOWHERE = torch.device("cpu")  # where there is no lane, and the wall clock counts

Receive = Callable[[int, Tensor], Tensor]
"""From a teacher's index and its raw logits to what is compared of them."""


class TeacherPanel:
    """Asks the teachers that a batch draws and makes one target of their answers.

    Args:
        teachers: The teachers, in the order in which errors and logs count them.
        n_sampled: How many answer a batch; None: all.
        seed: Seed of the draw.
        combine: ``'logits'`` or ``'probabilities'``.
        route_by: The entry of a batch that names each sample's teacher.
        overlap: Whether the first one that is asked computes beside the student, on a GPU.
    """

    def __init__(
        self,
        teachers: Sequence[AnyTeacher],
        n_sampled: int | None,
        seed: int,
        combine: str,
        route_by: str | None = None,
        *,
        overlap: bool = False,
    ) -> None:
        self.teachers = tuple(teachers)
        self.labels = labels_of(self.teachers)
        self.routing = routing_of(self.teachers, self.labels, route_by)
        self.sources = at_work(self.teachers)
        self.own = made_of_student(self.teachers)
        self.followers = {
            str(index): source
            for index, source in enumerate(self.sources)
            if isinstance(source, Follower)
        }
        self._early = {i: s for i, s in enumerate(self.sources) if isinstance(s, Early)}
        self.n_sampled = n_sampled
        self.seed = seed
        self.combine = combine
        self._overlap = overlap
        self.lane = lane_of(_NOWHERE)
        self._stopwatch = Stopwatch(_NOWHERE)
        self.windows = [getattr(source, "window", ALWAYS) for source in self.sources]
        weights = [source.weight for source in self.sources]
        self._scheduled = any(map(callable, weights)) or not all(w.is_all for w in self.windows)
        self._weights: list[float] | None = None  # of each now, 0 where it does not answer
        self._inside: list[bool] | None = None  # the windows that were open at the last move

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Make the teachers ready, at INIT.

        Args:
            state: The Trainer's state.
            sharding: Whether teachers are whole on each rank; see ``Distillation``.

        Raises:
            ValueError: If one can't be.
        """
        device = state.device.tensor_to_device(torch.empty(0)).device
        self._stopwatch, self.lane = Stopwatch(device), lane_of(device)
        for source in self.sources:
            source.prepare(state, sharding)
        if self.routing is not None:
            check_sharded(self.sources)

    def follow(self, state: State, *, acting: bool) -> None:
        """Let the teachers that are made of the student look at it, between batches."""
        for follower in self.followers.values():
            follower.follow(state, acting=acting)

    def state_dict(self) -> dict[str, Any]:
        """Return what the teachers that are made of the student need in a resumed run."""
        return {index: follower.state_dict() for index, follower in self.followers.items()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Let the teachers that are made of the student go on where they stopped."""
        for index, follower in self.followers.items():
            if index in saved:
                follower.load_state_dict(saved[index])

    def awake(self, state: State) -> bool:
        """Return whether any teacher answers now; their windows and weights are noted."""
        if not self._scheduled:
            return True
        self._weights = [
            weight_now(source.weight, state, f"{label}: weight") if window.contains(state) else 0.0
            for source, window, label in zip(self.sources, self.windows, self.labels, strict=True)
        ]
        return any(self._weights)

    def moves(self, state: State) -> bool:
        """Return whether a teacher's own window has opened or closed since the last move."""
        return self._scheduled and self._inside != [w.contains(state) for w in self.windows]

    def check(self, state: State) -> None:
        """Check the teachers' windows at FIT_START; raise ValueError where one can't be."""
        for window in self.windows:
            window.check(state)

    def idle(self, state: State, window: Window) -> list[str]:
        """Return what logs call the teachers that no batch of this training will ask.

        Args:
            state: The Trainer's state.
            window: In which distillation acts at all.
        """
        windows = zip(self.labels, self.windows, strict=True)
        return [label for label, own in windows if own.is_idle(state, within=window)]

    def settle(self, state: State | None = None, *, keep: bool = False) -> None:
        """Bring the teachers back to the device, if they had left it; let those go that are done.

        Args:
            state: The Trainer's state, where teachers have windows of their own.
            keep: Whether those whose window is over stay, since evaluations will ask them.
        """
        for source, window in zip(self.sources, self.windows, strict=True):
            if state is not None and window.is_over(state) and not keep:
                source.leave()
            elif state is None or keep or window.contains(state):
                source.settle()
        self._inside = None if state is None else [w.contains(state) for w in self.windows]

    def leave(self) -> None:
        """Free the device of the teachers: no batch will ask them any more."""
        for source in self.sources:
            source.leave()

    def draw(self, batch: int, *, everyone: bool = False) -> list[tuple[int, float]]:
        """Return ``(index, share)`` of the teachers that answer batch number ``batch``.

        Args:
            batch: Its number.
            everyone: Whether all that exist answer, whatever their windows, with their weights
                where these are numbers; for evaluations.
        """
        if everyone or self._weights is None:
            weights = [
                0.0 if absent(s) else 1.0 if callable(s.weight) else s.weight for s in self.sources
            ]
        else:
            weights = self._weights
        indices = [index for index, weight in enumerate(weights) if weight > 0.0]
        drawn = sample_teachers(
            [weights[index] for index in indices],
            None if everyone else self.n_sampled,
            self.seed,
            batch,
        )
        return [(indices[place], share) for place, share in drawn]

    @property
    def looks_ahead(self) -> bool:
        """Whether any teacher can begin with a microbatch before the student has answered it."""
        return bool(self._early) or self._overlap

    def look_ahead(self, state: State) -> None:
        """Let the drawn teachers that can begin with the microbatch, before the student has."""
        if self._overlap:
            self.lane.mark(state.batch)
        for index, _ in self.draw(int(state.timestamp.batch)):
            if index in self._early:
                self._early[index].look_ahead(state.batch)

    def is_beside(self, view: Any) -> bool:
        """Return whether work that needs this batch alone may be done on the lane now."""
        return self._overlap and self.lane.stands(view)

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
                source = self.sources[index]
                answer = self.timed(source, source.target, microbatch, state)
                yield share, receive(index, answer)

        if self.combine == "logits":
            return mean_logits(answers())
        return mean_probabilities(answers(), temperature, microbatch.compared.axis)

    def timed(
        self,
        source: Source,
        ask: Callable[[Microbatch, State], _Answer],
        microbatch: Microbatch,
        state: State,
    ) -> _Answer:
        """Return what ``ask`` answers, its time counted as the teachers'.

        Only the first one after BEFORE_FORWARD is free of the student: the next may compute with
        memory, or with a model, that the student's stream has used since. The first is the first
        of all instances, also of those that do not overlap.
        """
        free = getattr(source, "stands_apart", False) and self.is_beside(microbatch.view)
        start = self._stopwatch.start()
        with self.lane.aside(free and (microbatch.mask is None or microbatch.early)):
            self.lane.forget()
            answer = ask(microbatch, state)
        self._stopwatch.stop(start)
        return answer

    def forget(self) -> None:
        """Forget all of a batch that ended, or of a pass that did not complete."""
        self._stopwatch.reset()
        self.lane.forget()
        for source in self._early.values():
            source.forget()

    def seconds(self) -> float:
        """Return how long the teachers took in this batch."""
        return self._stopwatch.seconds()
