"""A ``kd_loss_fn`` that is none of ours: called with care, whatever it does."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from composer_distill.losses import DistillationLoss
from composer_distill.notes import noted
from composer_distill.teachers.splitting import map_tensors

_log = logging.getLogger(__name__)


class UsersLoss:
    """Calls a function with logits that it may not spoil.

    The first ones are copies. Where the function wrote into them, which is said once, all later
    ones are copies too; else they are the logits themselves, whose version tells of a late writer.

    Args:
        function: The callable ``(student, teacher) -> tensor``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._copies = True
        self._told = False

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the function's value, its mean where it has several, in float32 or better.

        Args:
            student: The student's logits.
            teacher: The target, of the same shape.

        Raises:
            TypeError: If the function returns no tensor.
        """
        dtype = torch.promote_types(student.dtype, torch.float32)
        given = [self._lent(logits, dtype) for logits in (student, teacher)]
        versions = [logits._version for logits in given]
        what = f" on logits of shape {tuple(student.shape)}"
        with noted("kd_loss_fn", self.function, what):
            distance = self.function(*given)
        self._copies = self._told
        if versions != [logits._version for logits in given]:
            self._tell()
        if not isinstance(distance, Tensor):
            raise TypeError(
                f"kd_loss_fn must return a tensor, got {type(distance).__name__}. "
                "Do not call .item() or float() on it."
            )
        return distance.mean()

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Have the function keep nothing of calls inside a ``with`` block.

        A running mean in a buffer or an attribute is that of the calls that train. Attributes of
        the function, of its object or of its modules are copies meanwhile; what it finds elsewhere,
        such as in a closure, is not known.
        """
        own = [] if isinstance(self.function, DistillationLoss) else _attributes(self.function)
        before = [dict(attributes) for attributes in own]
        for attributes in own:
            attributes.update(map_tensors(attributes, _copied))
        try:
            yield
        finally:
            for attributes, kept in zip(own, before, strict=True):
                attributes.clear()
                attributes.update(kept)

    def _lent(self, logits: Tensor, dtype: torch.dtype) -> Tensor:
        cast = logits.to(dtype)
        return logits.clone() if cast is logits and self._copies else cast

    def _tell(self) -> None:
        self._copies = True
        if not self._told:
            self._told = True
            _log.warning(
                "kd_loss_fn writes into the logits that it is given, which others read too. It is "
                "given copies from now on, which cost their memory once more; clone() them in it, "
                "or leave out what ends with an underscore."
            )


def _attributes(function: Any) -> list[dict[str, Any]]:
    """Return where a function, its object and the modules of that keep their attributes."""
    while isinstance(function, partial):
        function = function.func
    owner = getattr(function, "__self__", function)
    owners = owner.modules() if isinstance(owner, nn.Module) else [owner]
    known = (one for one in owners if not isinstance(one, type | ModuleType))
    return [vars(one) for one in known if hasattr(one, "__dict__")]


def _copied(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


class GradientShield:
    """Keeps a loss that is not finite out of the student: it counts 0, and so does its gradient.

    0 times a gradient of NaN would be NaN.

    Args:
        logits: What the loss is computed of.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.view_as(logits)
        self.finite: Tensor | None = None
        if self.logits.requires_grad:
            self.logits.register_hook(self._let_through)

    def close(self, loss: Tensor) -> Tensor:
        """Return the loss where it is finite, else 0.

        Args:
            loss: The loss of ``self.logits``.
        """
        self.finite = loss.detach().isfinite()
        return torch.where(self.finite, loss, 0.0)

    def _let_through(self, gradient: Tensor) -> Tensor | None:
        return None if self.finite is None else torch.where(self.finite, gradient, 0.0)
