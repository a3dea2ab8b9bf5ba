"""What every distillation loss shares: how it is called, combined, scheduled and printed."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from composer_distill.losses.checks import (
    Reduction,
    check_dim,
    check_number,
    check_reduction,
    check_temperature,
)

Schedule = Callable[[Any], float]
"""From the state of a run (Composer's ``State``, or any object) to the value for this batch."""


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class DistillationLoss(nn.Module):
    """A distance of a student's logits from a teacher's, to be minimised.

    A loss is called as ``loss(student, teacher, mask=None)``; one with ``needs_labels`` also takes
    ``labels``. A subclass implements :meth:`compute`, or :meth:`parts` and :meth:`combine` where it
    has more than one part. Losses add up and scale: ``0.5 * KLDivergence() + 0.5 * LogitMSE()`` is
    a loss too.

    A temperature may be a number or a schedule, a callable of one object. :meth:`resolve` sets its
    value; until then ``loss.temperature`` is the schedule and calling the loss is an error.

    Attributes:
        name: The class's name in snake case, unless it sets another.
        needs_labels: Whether the loss is called with ``labels``, which in a Trainer no other is.
        softmax: Whether the loss itself compares softmaxes.
        dim: The class axis.
        reduction: How positions become a scalar.
    """

    name: str = "distillation_loss"
    needs_labels: bool = False
    softmax: bool = False
    dim: int
    reduction: Reduction

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = _snake_case(cls.__name__)

    def __init__(self, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__()
        self._schedules: dict[str, Schedule] = {}
        self.dim = check_dim(dim)
        self.reduction = check_reduction(reduction)

    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        """Return the loss.

        Args:
            student: The student's logits. The gradient goes to these only.
            teacher: The teacher's logits, in the same shape.
            mask: True where a position counts, in the shape of the logits without their class
                axis. A masked position is as good as absent.
            labels: One class a position, for losses with ``needs_labels``; ignored by others.

        Shape:
            - student, teacher: ``(..., C)``, or the class axis at ``dim``.
            - mask, labels: ``(...)``.
            - output: a scalar, save for ``reduction='none'``.
        """
        return self.compute(student, teacher, mask, labels)

    def parts(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the unweighted value of each part by its name, in snake case.

        ``loss.combine(loss.parts(student, teacher))`` is ``loss(student, teacher)``: use both to
        log the parts and train on the whole without computing anything twice.
        """
        return {self.name: self.compute(student, teacher, mask, labels)}

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the loss whose :meth:`parts` these are."""
        return parts[self.name]

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the value of the loss; one that has several parts implements :meth:`parts`."""
        if type(self).parts is DistillationLoss.parts:
            raise NotImplementedError(f"{type(self).__name__} must implement compute or parts.")
        return self.combine(self.parts(student, teacher, mask, labels))

    def resolve(self, state: Any) -> None:
        """Set every scheduled value of this loss, and of the losses in it, for this batch.

        Args:
            state: What the schedules are called with; Composer's ``State`` in a Trainer.

        Raises:
            TypeError: If a schedule returns no number.
            ValueError: If it returns a value that the argument cannot have.
        """
        for name, schedule in self._schedules.items():
            self._set_scheduled(name, schedule(state))
        for child in self.children():
            if isinstance(child, DistillationLoss):
                child.resolve(state)

    def _set_scheduled(self, name: str, value: Any) -> None:
        setattr(self, name, check_temperature(value, name))

    def _number_or_schedule(self, name: str, value: float | Schedule) -> None:
        """Set the temperature-like argument ``name``, now or at every :meth:`resolve`."""
        if callable(value):
            self._schedules[name] = value
            setattr(self, name, value)
        else:
            self._set_scheduled(name, value)

    def __repr__(self) -> str:
        arguments = {
            name: self._schedules.get(name, getattr(self, name))
            for name in inspect.signature(type(self).__init__).parameters
            if hasattr(self, name)
        }
        shown = ", ".join(f"{name}={_show(value)}" for name, value in arguments.items())
        return f"{type(self).__name__}({shown})"

    def __mul__(self, weight: float) -> "WeightedSum":
        if not isinstance(weight, (int, float)):
            return NotImplemented
        return WeightedSum([(weight, self)])

    __rmul__ = __mul__

    def __add__(self, other: "DistillationLoss") -> "WeightedSum":
        if not isinstance(other, DistillationLoss):
            return NotImplemented
        return WeightedSum([*_terms(self), *_terms(other)])

    def __radd__(self, other: object) -> "DistillationLoss":
        return self if isinstance(other, int) and other == 0 else NotImplemented  # as in sum()


class WeightedSum(DistillationLoss):
    """A weighted sum of losses, each of which is logged under its own name.

    Args:
        terms: Pairs of a weight and a loss. A weight is a number, negative ones included, or a
            schedule. A sum within the sum is opened.

    Shape:
        - student, teacher: what the losses in it take.
        - output: a scalar; the losses must agree on the shape of their results.

    Raises:
        TypeError: If a term is no pair of a weight and a loss.
        ValueError: If there are no terms, or a weight is not finite.

    Example:
        >>> import torch
        >>> from composer_distill.losses import KLDivergence
        >>> loss = 0.5 * KLDivergence(temperature=2.0) + 0.5 * KLDivergence(temperature=1.0)
        >>> z = torch.tensor([[2.0, 0.0]])
        >>> sorted(loss.parts(z, -z))
        ['kl_divergence', 'kl_divergence_2']
    """

    def __init__(self, terms: Sequence[tuple[float | Schedule, DistillationLoss]]) -> None:
        super().__init__()
        opened = [inner for term in terms for inner in _open(term)]
        if not opened:
            raise ValueError("terms must not be empty, got []. Give at least one (weight, loss).")
        self.losses = nn.ModuleList(loss for _, loss in opened)
        self.weights: list[float | Schedule] = []
        for index, (weight, _) in enumerate(opened):
            self.weights.append(weight)
            if callable(weight):
                self._schedules[str(index)] = weight
            else:
                self._set_scheduled(str(index), weight)

    @property
    def needs_labels(self) -> bool:  # type: ignore[reportIncompatibleVariableOverride]
        """Whether any loss in the sum needs labels."""
        return any(loss.needs_labels for loss in self._members())

    @property
    def terms(self) -> list[tuple[float | Schedule, DistillationLoss]]:
        """The pairs of weight and loss, weights as they were given."""
        given = [self._schedules.get(str(i), weight) for i, weight in enumerate(self.weights)]
        return list(zip(given, self._members(), strict=True))

    def parts(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return each loss's unweighted value; a second one of a kind is named with ``_2``."""
        values = [loss(student, teacher, mask=mask, labels=labels) for loss in self._members()]
        return dict(zip(self._names(), values, strict=True))

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the parts; raise ValueError where their shapes differ."""
        if len({part.shape if part.numel() != 1 else () for part in parts.values()}) > 1:
            shapes = ", ".join(f"{name} {(*part.shape,)}" for name, part in parts.items())
            raise ValueError(
                f"the losses in a sum must give results of one shape, got {shapes}. "
                "Give all of them the same reduction, such as 'mean'."
            )
        weighted = [parts[name] * self._weight(index) for index, name in enumerate(self._names())]
        return sum(weighted[1:], start=weighted[0])

    def resolve(self, state: Any) -> None:
        """Set every scheduled weight, and every scheduled value of the losses, for this batch."""
        super().resolve(state)
        for loss in self._members():
            loss.resolve(state)

    def _members(self) -> list[DistillationLoss]:
        return [loss for loss in self.losses if isinstance(loss, DistillationLoss)]

    def _names(self) -> list[str]:
        names: list[str] = []
        for loss in self._members():
            same = sum(earlier.name == loss.name for earlier in self._members()[: len(names)])
            names.append(f"{loss.name}_{same + 1}" if same else loss.name)
        return names

    def _weight(self, index: int) -> float:
        weight = self.weights[index]
        if callable(weight):
            raise TypeError(
                f"weight {index} is the schedule {weight!r}, which has no value yet. "
                "Call loss.resolve(state) before the loss, once a batch."
            )
        return weight

    def _set_scheduled(self, name: str, value: Any) -> None:
        remedy = "Give a number such as 0.5, or a schedule that returns one."
        self.weights[int(name)] = check_number(f"weight {name}", value, remedy=remedy)

    def __repr__(self) -> str:
        shown = ", ".join(f"({_show(weight)}, {loss!r})" for weight, loss in self.terms)
        return f"WeightedSum([{shown}])"


def _terms(loss: DistillationLoss) -> list[tuple[float | Schedule, DistillationLoss]]:
    return loss.terms if isinstance(loss, WeightedSum) else [(1.0, loss)]


def _open(term: Any) -> list[tuple[float | Schedule, DistillationLoss]]:
    """Return the terms of a term: more than one where the loss is itself a sum."""
    if not (isinstance(term, tuple) and len(term) == 2 and isinstance(term[1], DistillationLoss)):
        raise TypeError(
            f"terms must be pairs of a weight and a DistillationLoss, got {term!r}. "
            "Wrap a plain callable in a DistillationLoss, or add the two values yourself."
        )
    weight, loss = term
    if not isinstance(loss, WeightedSum):
        return [(weight, loss)]
    return [(_product(weight, inner), member) for inner, member in loss.terms]


def _product(outer: float | Schedule, inner: float | Schedule) -> float | Schedule:
    if not callable(outer) and outer == 1.0:
        return inner
    if callable(outer) or callable(inner):
        raise TypeError(
            f"a sum with a scheduled weight ({_show(inner)}) cannot be scaled by {_show(outer)}. "
            "Scale the schedule itself, and give it to WeightedSum."
        )
    return outer * inner


def _show(value: Any) -> str:
    """Return the repr of an argument, by name for a function: no memory address."""
    return getattr(value, "__qualname__", None) or repr(value)
