"""Which samples each teacher answers, told by functions of the batch or by a column of names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from composer_distill.losses import FusedLinearKL
from composer_distill.notes import noted
from composer_distill.teachers.lending import handed
from composer_distill.teachers.roster import AnyTeacher
from composer_distill.teachers.source import Source
from composer_distill.terms.narrowing import check_is_mean

Rows = Tensor
"""True for each sample that a teacher answers, ``(B,)``, in host memory."""


class Routing:
    """Says which samples of a batch each teacher answers.

    Args:
        teachers: The teachers.
        labels: What errors call them.
        column: The entry of a batch that names each sample's teacher; None where each teacher's
            own ``route`` says.
    """

    def __init__(
        self, teachers: Sequence[AnyTeacher], labels: Sequence[str], column: str | None
    ) -> None:
        self._labels = tuple(labels)
        self._functions = [teacher.route for teacher in teachers]
        self._column = column
        self._names = [teacher.name for teacher in teachers]

    def rows(self, batch: Any, samples: int) -> list[Rows]:
        """Return which samples each teacher answers.

        Args:
            batch: The batch as the student saw it.
            samples: How many samples it has.

        Shape:
            - results: ``(samples,)``.

        Raises:
            TypeError: If a route or the column is of the wrong kind.
            ValueError: If it has another length, or names somebody who is no teacher.
        """
        if self._column is not None:
            return self._by_column(batch, samples)
        pairs = zip(self._functions, self._labels, strict=True)
        return [_by_function(function, batch, samples, label) for function, label in pairs]

    def _by_column(self, batch: Any, samples: int) -> list[Rows]:
        named = column_of(batch, str(self._column))
        if len(named) != samples:
            raise ValueError(
                f"route_by={self._column!r}: the batch's entry has {len(named)} values where the "
                f"student's logits are of {samples} samples. Give one teacher's name a sample."
            )
        for name in named:
            if name and name not in self._names:
                known = ", ".join(map(repr, self._names))
                raise ValueError(
                    f"route_by={self._column!r}: the batch names {name!r}, but the teachers are "
                    f"called {known}. Name one of these, or '' for a sample without a teacher."
                )
        return [torch.tensor([one == name for one in named]) for name in self._names]


def routing_of(
    teachers: Sequence[AnyTeacher], labels: Sequence[str], route_by: str | None
) -> Routing | None:
    """Return how samples find their teachers, None where all teachers answer all samples.

    Raises:
        TypeError: If ``route_by`` is no name.
        ValueError: If a teacher can't be found by it.
    """
    routed = [label for label, x in zip(labels, teachers, strict=True) if x.route is not None]
    if route_by is None:
        return Routing(teachers, labels, None) if routed else None
    if not isinstance(route_by, str):
        raise TypeError(
            f"route_by must be the name of a batch's entry, got {type(route_by).__name__}. For any "
            "other rule use Teacher(..., route=...)."
        )
    if routed:
        raise ValueError(
            f"{routed[0]}: it has a route, and route_by={route_by!r} says otherwise who answers. "
            "Give one of the two."
        )
    for label, teacher in zip(labels, teachers, strict=True):
        if not teacher.name:
            raise ValueError(
                f"{label}: route_by={route_by!r} finds teachers by their names, and it has none. "
                "Pass Teacher(model, name=...)."
            )
    return Routing(teachers, labels, route_by)


def column_of(batch: Any, column: str) -> Sequence[str | None]:
    """Return the names in a batch's column.

    Example:
        >>> column_of({"teacher": ["code", ""]}, "teacher")
        ['code', '']
    """
    if not isinstance(batch, Mapping) or column not in batch:
        found = list(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise ValueError(
            f"route_by={column!r}: the batch holds no such entry, but {found}. Have the collator "
            "keep it, or use Teacher(..., route=...)."
        )
    named = batch[column]
    if not isinstance(named, (list, tuple)) or not all(isinstance(x, str | None) for x in named):
        raise TypeError(
            f"route_by={column!r}: the batch's entry must be a list of names, got "
            f"{type(named).__name__}. Leave names as text, or use Teacher(..., route=...)."
        )
    return named


def _by_function(
    route: Callable[[Any], Any] | None, batch: Any, samples: int, label: str
) -> Tensor:
    if route is None:
        return torch.ones(samples, dtype=torch.bool)
    of = f" of {label}"
    with handed(batch, "route", route, of) as given, noted("route", route, of):
        rows = route(given)
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        found = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"{label}: route must return a bool tensor, one value a sample, got {found}. "
            "Compare, such as batch['source'] == 3."
        )
    if rows.shape != (samples,):
        raise ValueError(
            f"{label}: route must return one value for each of the {samples} samples of the "
            f"student's logits, got the shape {tuple(rows.shape)}."
        )
    return rows.cpu()


def check_sharded(sources: Sequence[Source]) -> None:
    """Refuse that ranks run a teacher that is cut over them unlike numbers of times.

    Raises:
        ValueError: Naming the teacher that is cut over the ranks and reads in pieces.
    """
    for source in sources:
        teacher: Any = getattr(source, "teacher", None)
        pieces = getattr(teacher, "microbatch_size", None)
        if getattr(source, "sharded", False) and pieces is not None:
            raise ValueError(
                f"{source.label}: it is cut over the ranks, which must run it equally often, but "
                "by its route each rank has other numbers of samples for it, and "
                f"microbatch_size={pieces} makes others of pieces. Leave microbatch_size out."
            )


class Settings(Protocol):
    """What of ``Distillation`` needs each teacher's answer to every sample."""

    kd_loss_fn: Any
    feature_terms: Any
    n_teachers_to_sample: int | None
    eval_teachers: bool


def check_all_answer(settings: Settings, routing: Routing | None, sparse: bool) -> None:
    """Refuse what needs each teacher's answer to every sample, where samples are routed.

    Args:
        settings: The arguments of ``Distillation``.
        routing: How samples are routed; None where they are not.
        sparse: Whether a teacher's answers are cached ones of few classes.

    Raises:
        ValueError: Naming the argument, and what to do instead.
    """
    if routing is None:
        return
    refused = {
        "kd_loss_fn=FusedLinearKL": (
            isinstance(settings.kd_loss_fn, FusedLinearKL),
            "Use KLDivergence.",
        ),
        "feature_terms": (bool(settings.feature_terms), "Leave it out, or the routes."),
        "n_teachers_to_sample": (
            settings.n_teachers_to_sample is not None,
            "Leave it out: a teacher that has no sample in a batch costs nothing.",
        ),
        "eval_teachers": (
            settings.eval_teachers,
            "Leave it out, and evaluate each teacher on its own data.",
        ),
        "teachers of cached answers of few classes": (
            sparse,
            "Write caches of whole logits.",
        ),
    }
    for what, (given, remedy) in refused.items():
        if given:
            raise ValueError(
                f"{what} needs each teacher's answer to every sample, but route or route_by leaves "
                f"some out. {remedy}"
            )
    check_is_mean(settings.kd_loss_fn, "a route")
