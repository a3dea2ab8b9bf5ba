"""What every loss of features shares: how it is called and printed."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class FeatureLoss(nn.Module):
    """A distance of a student's layer from a teacher's, to be minimised.

    It is called as ``loss(student, teacher, mask=None)`` and returns a scalar. The gradient goes to
    the student only; float16 and bfloat16 are computed in float32. A masked position is as good as
    absent, whatever it holds; where nothing is left the value is 0 with a gradient path.

    A subclass names its ``function``, called as ``function(student, teacher, mask, *, ...)``, and
    its constructor sets an attribute for each of the function's keyword arguments.

    Attributes:
        relates_samples: Whether the samples of a call are compared with each other, so that the
            value of a batch is not the mean of the values of its microbatches.
    """

    function: ClassVar[Callable[..., Tensor]]
    relates_samples: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()

    def forward(self, student: Any, teacher: Any, mask: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            student: The student's features.
            teacher: The teacher's features of the same samples.
            mask: True where a position counts; None where all do.
        """
        return type(self).function(student, teacher, mask, **self._options())

    def _options(self) -> dict[str, Any]:
        parameters = inspect.signature(type(self).function).parameters.values()
        return {p.name: getattr(self, p.name) for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __repr__(self) -> str:
        names = inspect.signature(type(self).__init__).parameters
        given = ", ".join(f"{n}={getattr(self, n)!r}" for n in names if hasattr(self, n))
        return f"{type(self).__name__}({given})"
