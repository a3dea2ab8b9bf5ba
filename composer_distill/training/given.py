"""The batch as the student was given it, where the student writes into it."""

import logging
from typing import Any

from torch import Tensor, nn

from composer_distill.teachers.splitting import map_tensors, parts_of

_log = logging.getLogger(__name__)

_LOOKS = 4  # microbatches of a run that are looked at


class GivenBatch:
    """Gives teachers what the student was given, also where the student changes it in place.

    Some models normalise their input in place, or begin with ``ReLU(inplace=True)``. Teachers are
    asked after them. So the first microbatches are copied before the student's forward, and
    compared after it by the version counters of their tensors: a student that writes is copied from
    at each microbatch from then on; one that does not costs nothing more.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._writes = False
        self._handle: Any = None
        self._before: list[tuple[Tensor, int, Tensor]] = []  # each with its version, and a copy

    @property
    def watches(self) -> bool:
        """Whether the next microbatch is to be looked at."""
        return self._writes or self._looks < _LOOKS

    def listen(self, student: nn.Module) -> None:
        """Copy the batch when the student is called with it, behind all who may change it."""
        self.forget()
        if self.watches:
            self._handle = student.register_forward_pre_hook(lambda _, given: self.copy(given))

    def copy(self, batch: Any) -> None:
        """Copy what the student is about to read."""
        if not self.watches:
            return
        self._looks += 1
        tensors = [part for part, _ in parts_of(batch) if isinstance(part, Tensor)]
        changing = [tensor for tensor in tensors if not tensor.is_inference()]
        self._before = [(tensor, tensor._version, tensor.detach().clone()) for tensor in changing]

    def as_given(self, view: Any) -> Any:
        """Return a view of the batch with what the student has changed put back.

        Args:
            view: The batch after the student's forward; it is left as it is.
        """
        copies = {id(was): copy for was, version, copy in self._before if was._version != version}
        self.forget()
        if not copies:
            return view
        if not self._writes:
            self._writes = True
            _log.warning(
                "the student changes its input in place: teachers get a copy of each batch as it "
                "was given to the student, which takes the batch's memory once more. A model that "
                "leaves its input alone needs none."
            )
        return map_tensors(view, lambda tensor: copies.get(id(tensor), tensor))

    def forget(self) -> None:
        """Listen no more, and keep nothing of a batch."""
        self._before = []
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
