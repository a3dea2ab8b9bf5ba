"""Losses that are a function and its arguments, as nearly all of them are."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from composer_distill.losses.base import DistillationLoss, Schedule
from composer_distill.losses.checks import check_share


class FunctionalLoss(DistillationLoss):
    """A loss that calls a function with what it was made with.

    A subclass names its ``function``, called as ``function(student, teacher, mask, *, ...)``, with
    ``labels`` behind the mask where the loss needs them. Its constructor sets an attribute for each
    of the function's keyword arguments.
    """

    function: ClassVar[Callable[..., Tensor]]
    _options: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in vars(cls):
            parameters = inspect.signature(cls.function).parameters.values()
            cls._options = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the function's value."""
        inputs = (student, teacher, mask, labels) if self.needs_labels else (student, teacher, mask)
        return type(self).function(*inputs, **{name: getattr(self, name) for name in self._options})


class TemperedLoss(FunctionalLoss):
    """A loss of softened distributions, with a temperature that may be a schedule."""

    softmax = True
    temperature: float | Schedule

    def __init__(
        self, temperature: float | Schedule = 1.0, dim: int = -1, reduction: str = "mean"
    ) -> None:
        super().__init__(dim, reduction)
        self._number_or_schedule("temperature", temperature)


class SkewedLoss(TemperedLoss):
    """A divergence from, or to, a mixture in which one of the two distributions has a share."""

    remedy: ClassVar[str]

    def __init__(
        self,
        alpha: float = 0.1,
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        self.alpha = check_share("alpha", alpha, remedy=self.remedy)
