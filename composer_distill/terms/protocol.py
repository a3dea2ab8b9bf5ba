"""What a term of the loss gives: the seam between a Trainer's events and what is compared."""

from typing import Any, NamedTuple, Protocol

from composer.core import State
from torch import Tensor


class Measured(NamedTuple):
    """What a term says of a microbatch.

    Attributes:
        loss: Its unweighted value, a scalar with a gradient path to the student.
        values: Detached scalars for the log, by metric name.
        positions: How many positions the loss is a mean of; None where every sample counts alike.
    """

    loss: Tensor
    values: dict[str, Tensor]
    positions: int | None


class Term(Protocol):
    """A term that is added to the student's own loss.

    Attributes:
        weight_name: What the log calls its weight.
        listens: Whether it must hear of each forward of the student, before and after.
    """

    weight_name: str
    listens: bool

    def weight(self, state: State, /) -> float:
        """Return its weight now; with 0 it is not measured."""
        ...

    def prepare(self, state: State) -> None:
        """Check what can be checked, at INIT; raise where the term can't be measured."""
        ...

    def start_forward(self, state: State) -> None:
        """BEFORE_FORWARD of the student, where the term listens."""
        ...

    def end_forward(self) -> None:
        """AFTER_FORWARD of the student, where the term listens."""
        ...

    def measure(self, state: State, view: Any, outputs: Any, *, trust_labels: bool) -> Measured:
        """Ask the teachers and measure the student's distance from them, at AFTER_LOSS.

        Args:
            state: The Trainer's state.
            view: The batch as the student saw it.
            outputs: The student's output, as its loss was given it.
            trust_labels: Whether the batch's labels are real, so that teachers can be judged.
        """
        ...

    def check(self, batch: int) -> None:
        """Raise ValueError on a broken teacher, before the optimizer's step of a batch."""
        ...

    def forget(self) -> None:
        """Keep nothing of a microbatch, whether it was measured or not."""
        ...
