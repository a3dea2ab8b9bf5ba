"""The batch as the student was given it and the answer as it gave it, whatever is done to them."""

import logging
from typing import Any

import torch
from composer.core import State
from torch import Tensor, nn

from composer_distill.teachers.splitting import map_tensors, parts_of, shallow_copy

_log = logging.getLogger(__name__)

_LOOKS = 4  # microbatches of a run that are copied to look for writers


class GivenBatch:
    """Gives teachers what the student was given, also where the student or its loss changes it.

    Some models normalise their input in place, begin with ``ReLU(inplace=True)`` or put another
    tensor into their batch; some losses write into the labels. Teachers are asked after them. So
    the containers of each microbatch are copied when the student is called, and the tensors of the
    first ones too. Version counters, and the values of the first ones, tell whether anybody writes:
    then tensors are copied at each microbatch from then on; else that costs nothing more.
    """

    def __init__(self) -> None:
        self._looks = 0
        self._writes = False
        self._handle: Any = None
        self._noted: tuple[Any, list[tuple[Tensor, int, Tensor | None]]] | None = None

    def listen(self, state: State) -> None:
        """Note the batch when the student is called with it, behind all who may change it."""
        self.forget()

        def hear(student: nn.Module, given: tuple[Any, ...]) -> None:
            if given and given[0] is state.batch:  # an algorithm may call it with another
                self.note(given[0])

        self._handle = state.model.register_forward_pre_hook(hear)

    def note(self, batch: Any) -> None:
        """Note what the student is about to read; what its loss calls it with is no batch."""
        self._stop()
        copies = self._writes or self._looks < _LOOKS
        self._looks += 1
        tensors = [part for part, _ in parts_of(batch) if isinstance(part, Tensor)]
        before = [
            (tensor, tensor._version, tensor.detach().clone() if copies else None)
            for tensor in tensors
            if not tensor.is_inference()
        ]
        self._noted = shallow_copy(batch), before

    def end(self, batch: Any) -> None:
        """Listen no more, behind the student's forward; a student without hooks is noted now."""
        if self._noted is None:
            self.note(batch)
        self._stop()

    def as_given(self) -> Any:
        """Return the batch with what was changed since put back, and keep nothing of it."""
        view, before = self._noted or (None, [])
        self.forget()
        changed = [
            (was, copy) for was, version, copy in before if self._changed(was, version, copy)
        ]
        if not changed:
            return view
        if not self._writes:
            self._writes = True
            late = any(copy is None for _, copy in changed)
            _log.warning(
                "the student changes its input in place%s: teachers get a copy of each batch as it "
                "was given to the student, which takes the batch's memory once more. A model that "
                "leaves its input alone needs none.",
                ", which it did not at first, so that its teachers read one microbatch as it left "
                "it. From now on"
                if late
                else "",
            )
        copies = {id(was): copy for was, copy in changed if copy is not None}
        return map_tensors(view, lambda tensor: copies.get(id(tensor), tensor))

    def _changed(self, was: Tensor, version: int, copy: Tensor | None) -> bool:
        if was._version != version:
            return True
        # No version tells of what was written through .data or NumPy
        return copy is not None and (self._writes or not _same(was, copy))

    def forget(self) -> None:
        """Listen no more, and keep nothing of a batch."""
        self._stop()
        self._noted = None

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None


class GivenAnswer:
    """What the student's loss is given of its answer, which the loss may change.

    Args:
        outputs: The student's output, before its loss.
    """

    def __init__(self, outputs: Any) -> None:
        self._outputs = shallow_copy(outputs)
        self._before = parts_of(outputs)

    def as_given(self) -> Any:
        """Return the output with the entries that it had.

        Raises:
            ValueError: If one was changed in place: its values can't be brought back.
        """
        for part, version in self._before:
            compared = isinstance(part, Tensor) and part.is_floating_point() and part.ndim > 0
            if compared and not part.is_inference() and part._version != version:
                raise ValueError(
                    "the student: its answer was changed in place between its forward and the "
                    f"teachers', by its loss() or an algorithm: a tensor of {part.dtype} of shape "
                    f"{tuple(part.shape)}. Teachers would be compared with what it did not answer: "
                    "write logits / 2 instead of logits.div_(2), or clone() them first."
                )
        return self._outputs


def _same(tensor: Tensor, copy: Tensor) -> bool:
    """Return whether two tensors hold equal values, NaN too; True for kinds that can't be told."""
    if type(tensor) is not Tensor or tensor.layout is not torch.strided or tensor.is_nested:
        return True
    same_kind = tensor.shape == copy.shape and tensor.dtype == copy.dtype
    return same_kind and torch.allclose(tensor, copy, rtol=0.0, atol=0.0, equal_nan=True)
