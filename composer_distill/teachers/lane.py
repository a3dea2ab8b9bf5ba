"""A stream of work of the teacher's own on a GPU, on which it computes while the student does."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from composer_distill.teachers.splitting import parts_of, same_parts


class Lane:
    """Runs a teacher behind the moment at which a batch stood, and not behind the student.

    The student's stream waits for all that was done on the lane before it goes on, so whatever
    follows in program order finds it done. The lane waits for the mark alone. What it reads must
    therefore stand since the mark: the batch, which is compared by its tensors and their versions,
    and a model that is nobody else's. Memory needs no more than that: what is freed on one stream
    is used again there, behind the next mark or behind the lane's end.

    Args:
        device: The Trainer's; without effect where it is no GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None  # until a batch is marked
        self._mark: tuple[list[tuple[Any, int]], Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy to the same: a device has one lane."""
        return lane_of, (self._device,)

    def mark(self, batch: Any) -> None:
        """BEFORE_FORWARD: note what the batch holds, and the work that made it."""
        self.forget()
        if self._device.type == "cuda":
            self._stream = self._stream or torch.cuda.Stream(self._device)
            parts = parts_of(batch)
            if all(_is_plain(part) for part, _ in parts):  # whatever else may hold tensors unseen
                self._mark = parts, torch.cuda.current_stream(self._device).record_event()

    def stands(self, batch: Any) -> bool:
        """Return whether a batch holds what it held at the mark."""
        return self._mark is not None and same_parts(self._mark[0], parts_of(batch))

    def forget(self) -> None:
        """Take the mark away: what comes now is done behind the student."""
        self._mark = None

    @contextmanager
    def aside(self, free: bool) -> Iterator[None]:
        """Run what is inside on the lane, behind the mark; on the student's stream unless free.

        Args:
            free: Whether all that is read inside stood at the mark, or was made on the lane since.
        """
        if not free or self._mark is None:
            yield
            return
        students = torch.cuda.current_stream(self._device)
        self._stream.wait_event(self._mark[1])
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            students.wait_stream(self._stream)


@cache
def lane_of(device: torch.device) -> Lane:
    """Return the lane of a device, one for all who ask: two would not know of each other."""
    return Lane(device)


def share_workspace(student: nn.Module, teacher: nn.Module) -> bool:
    """Return whether both write to memory that no stream owns.

    Transformer Engine has one workspace on a device for the products of all its layers.
    """
    return all(any(map(_is_of_engine, model.modules())) for model in (student, teacher))


def _is_of_engine(module: nn.Module) -> bool:
    return type(module).__module__.startswith("transformer_engine.")


def _is_plain(part: Any) -> bool:
    if isinstance(part, Tensor):
        return not part.is_inference()  # which tells no versions
    return isinstance(part, Number | str | bytes | None)
