"""What a source of targets gives: the seam between what is compared and who answers."""

from typing import Any, Protocol, runtime_checkable

from composer.core import State
from torch import Tensor

from composer_distill.schedule import Weight
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.sharding import Sharding


class Source(Protocol):
    """Somebody who answers microbatches in a Trainer, such as a model at work.

    Attributes:
        label: What errors and logs call it.
        weight: Its share where several answers are combined: positive, or a schedule.

    It may have a ``window`` of its own, outside of which it is not asked.
    """

    label: str
    weight: Weight

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Get ready on the Trainer's device, at INIT; raise ValueError where it can't."""
        ...

    def settle(self) -> None:
        """Come back to the device where it had left: batches will be asked about."""
        ...

    def leave(self) -> None:
        """Free the device: no batch will be asked about any more."""
        ...

    def target(self, microbatch: Microbatch, state: State) -> Tensor:
        """Return logits for a microbatch, without a graph and without a trace.

        Args:
            microbatch: What the student saw and answered. Where it has a ``head_mask`` the answer
                may be given at those positions alone.
            state: The Trainer's state.

        Shape:
            - result: that of the student's logits, or ``(1, K, C)`` at the positions kept.
        """
        ...


@runtime_checkable
class Early(Protocol):
    """A source that can begin with a microbatch before the student has answered it."""

    def look_ahead(self, batch: Any) -> None:
        """Begin, without waiting: at BEFORE_FORWARD. The batch may still change."""
        ...

    def forget(self) -> None:
        """Keep nothing of what was begun."""
        ...


@runtime_checkable
class Follower(Protocol):
    """A source that looks at the student between batches, because it is made of it."""

    @property
    def exists(self) -> bool:
        """Whether it has been made of the student yet; until then it can't answer."""
        ...

    def follow(self, state: State, *, acting: bool) -> None:
        """Look at the student as the next batch will find it: at FIT_START and at BATCH_END."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain types and tensors."""
        ...

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where the run that wrote ``saved`` stopped."""
        ...


def absent(source: Source) -> bool:
    """Return whether a source is yet to be made of the student."""
    return isinstance(source, Follower) and not source.exists
