"""From what a user names to how it is read of a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from composer_distill.terms.features.names import find, is_glob, pair, unwrapped
from composer_distill.terms.features.recorder import Recorder, Tap


@dataclass(frozen=True)
class Layer:
    """One thing that is read of a model in a forward.

    Args:
        name: What errors and logs call it.
        taps: Where the model is listened at.
        make: From what the taps gave to features; None where there is one tap and nothing to do.
        function: The user's ``(model, outputs) -> tensor``, instead of taps.
    """

    name: str
    taps: tuple[Tap, ...] = ()
    make: Callable[..., Any] | None = None
    function: Callable[[nn.Module, Any], Any] | None = None

    def read(self, model: nn.Module, outputs: Any, recorder: Recorder, owner: str) -> Any:
        """Return the features of the forward that just ran.

        Args:
            model: The model.
            outputs: Its output.
            recorder: What listened to it.
            owner: Whose they are, for errors.

        Raises:
            TypeError: If there is no tensor.
            ValueError: If what was heard misleads.
        """
        if self.function is None:
            values = [recorder.value(tap) for tap in self.taps]
            return values[0] if self.make is None else self.make(*values)
        features = self.function(unwrapped(model), outputs)
        if not isinstance(features, Tensor):
            raise TypeError(
                f"{owner}: {self.name} must return a tensor, got {type(features).__name__}. It is "
                "called as (model, outputs)."
            )
        return features


def layers_by_name(
    model: nn.Module, name: str, of: Literal["output", "input"], owner: str
) -> list[Layer]:
    """Return the layers of a name or a glob.

    Args:
        model: The model, wrapped or not.
        name: The name.
        of: Whether outputs or inputs are wanted.
        owner: Whose layers they are, for errors.

    Raises:
        ValueError: If a name is unknown.
    """
    found = find(model, name, owner)
    return [Layer(plain, (Tap(plain, module, of),)) for plain, module in found]


def pairs_of(
    student: Sequence[Layer], teacher: Sequence[Layer], named: Any
) -> list[tuple[Layer, Layer]]:
    """Return the student's layers, each with its teacher's.

    Args:
        student: The student's layers.
        teacher: The teacher's.
        named: What the user named the teacher's by.

    Raises:
        ValueError: If their numbers do not fit.
    """
    by_glob = isinstance(named, str) and is_glob(named)
    ours, theirs = (range(len(layers)) for layers in (student, teacher))
    if len(ours) == len(theirs):
        return list(zip(student, teacher, strict=True))
    names = pair([x.name for x in student], [x.name for x in teacher], by_glob=by_glob)
    by_name = {layer.name: layer for layer in teacher}
    return [(ours, by_name[name]) for ours, (_, name) in zip(student, names, strict=True)]
