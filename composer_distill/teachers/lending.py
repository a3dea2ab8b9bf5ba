"""Batches, lent to a teacher so that they come back as they went."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from composer_distill.teachers.splitting import map_tensors, parts_of, same_parts, shallow_copy

log = logging.getLogger(__name__)


class Lending:
    """Lends a teacher the student's own tensors, or copies where it writes into them.

    Some models normalise their input in place, or begin with ``ReLU(inplace=True)``. What they
    change would reach the student's graph and the next teacher. So the first batch is lent as a
    copy, whose version counters tell whether it was changed; from then on the teacher gets copies,
    or, where nothing was, the tensors themselves at no cost.

    Args:
        label: What errors and logs call the teacher.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._copies: bool | None = None  # not known before the first batch

    @contextmanager
    def lend(self, batch: Any) -> Iterator[Any]:
        """Give the batch that the teacher may read, inside a ``with`` block.

        Args:
            batch: A tensor, tuple, list or mapping, nested at will.

        Raises:
            ValueError: If the teacher, which left its first batch alone, changed this one.
        """
        lent = batch if self._copies is False else map_tensors(batch, Tensor.clone)
        before = parts_of(lent)
        yield lent
        if self._copies:
            return
        changed = not same_parts(before, parts_of(lent))
        if changed and self._copies is False:
            raise ValueError(
                f"{self._label}: it changed its input in place, which it did not at its first "
                "batch, so that the student's batch is not what it was. Give it copies: "
                "Teacher(..., input_fn=...) with tensor.clone()."
            )
        self._copies = changed
        if changed:
            log.warning(
                "%s changes its input in place: it gets a copy of each batch from now on, which "
                "takes the batch's memory once more. A model that leaves its input alone needs "
                "none.",
                self._label,
            )


@contextmanager
def handed(value: Any, argument: str, function: Any, of: str = "") -> Iterator[Any]:
    """Give a function of the user's what others read too, inside a ``with`` block.

    It gets containers of its own, so that it may take entries out.

    Args:
        value: A batch, or a model's output.
        argument: The argument's name.
        function: What was passed for it.
        of: Whose it is, in words.

    Raises:
        ValueError: If it wrote into a tensor.
    """
    before = parts_of(value)
    yield shallow_copy(value)
    if not same_parts(before, parts_of(value)):
        name = getattr(function, "__qualname__", None) or type(function).__name__
        raise ValueError(
            f"{argument} ({name}){of} writes into a tensor that it is given, which others "
            "read too. clone() it first, or leave out what ends with an underscore."
        )
