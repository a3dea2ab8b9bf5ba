"""A ``kd_loss_fn`` that is none of ours: called with care, whatever it does."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from composer_distill.notes import noted

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
