"""Watch over teachers' answers: are they finite?"""

import logging
import math

import torch
from torch import Tensor

from composer_distill.losses.precision import can_be_read

_log = logging.getLogger(__name__)

_BAD_LOSS = (
    "kd_loss_fn returned NaN or infinity, though the logits of the student and its teachers were "
    "finite"
)
_LOSS_REMEDY = "Look for a log or a root of 0, or a division by it, and bound it with clamp()."


class FiniteGuard:
    """Notes what tells of NaN or infinity in answers, and waits for the device once a batch.

    Args:
        remedy: What to do about such a teacher, for the error.
        what: What its answers are, for the error.
    """

    def __init__(self, remedy: str, what: str = "logits") -> None:
        self._remedy = remedy
        self._what = what
        self._extremes: dict[str, list[Tensor]] = {}  # that may be none, of the pass over the batch
        self._latest: list[Tensor] = []  # of them, those of the microbatch
        self._losses: list[Tensor] = []  # that may be none, of finite answers
        self._told = False

    def start(self) -> None:
        """Begin a microbatch."""
        self._latest = []

    def forget(self) -> None:
        """Forget a batch that ended, or a pass that did not complete."""
        self._extremes, self._latest, self._losses = {}, [], []

    def note_loss(self, loss: Tensor, student: Tensor) -> None:
        """Keep a loss that may be none though the student's logits are finite.

        Args:
            loss: The loss of the microbatch.
            student: The student's logits that it was computed of.
        """
        loss = loss.detach()
        if can_be_read(loss) and math.isfinite(loss.item()):
            return
        dtype = torch.promote_types(student.dtype, torch.float32)
        sound = student.detach().sum(dtype=dtype).isfinite()
        self._losses.append(torch.where(sound, loss, 0.0))

    def note(self, label: str, *answers: Tensor, axis: int | None = None) -> None:
        """Keep the least and the largest value, both finite where all values are.

        Where the host sees the values it first looks at their sum, which is finite only if they
        are, though it may be infinite besides.

        Args:
            label: Whose answers they are, for the error.
            *answers: Tensors of any shape.
            axis: The class axis, where a class may be ruled out by minus infinity: of each position
                the largest value alone is looked at. It shows NaN, infinity, and a position where
                no class is left.
        """
        for answer in answers:
            if can_be_read(answer) and math.isfinite(answer.sum().item()):
                continue
            looked_at = answer if axis is None or not answer.numel() else answer.amax(axis)
            both = (looked_at if looked_at.numel() else answer.new_zeros(1)).aminmax()
            self._extremes.setdefault(label, []).extend(both)
            self._latest.extend(both)

    def all_finite(self) -> Tensor | None:
        """Return whether the microbatch's answers were finite; None where all are known to be.

        It does not wait for the device.
        """
        return torch.stack(self._latest).isfinite().all() if self._latest else None

    def check(self, batch: int) -> None:
        """Stop on a broken teacher: one synchronisation a batch.

        Raises:
            ValueError: Naming the first teacher whose answers held NaN or infinity.
        """
        noted, self._extremes = self._extremes, {}
        losses, self._losses = self._losses, []
        if not (noted or losses):
            return
        extremes = [x for both in noted.values() for x in both]
        stacked = [torch.stack(found).double() for found in (extremes, losses) if found]
        values = iter(torch.cat(stacked).tolist())
        for label, both in noted.items():
            if not all(math.isfinite(next(values)) for _ in both):
                raise ValueError(
                    f"{label}: its {self._what} hold NaN or infinity at batch {batch}. Check its "
                    f"checkpoint and the precision, {self._remedy}"
                )
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{_BAD_LOSS} at batch {batch}. {_LOSS_REMEDY}")

    def tell(self, batch: int) -> None:
        """Say once that a loss was none; one synchronisation a batch until then."""
        losses, self._losses = self._losses, []
        if losses and not self._told and not torch.stack(losses).isfinite().all():
            self._told = True
            _log.warning("%s at batch %d. It counts 0 there. %s", _BAD_LOSS, batch, _LOSS_REMEDY)
