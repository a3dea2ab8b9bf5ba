"""A language model's output head: run at some positions only, or taken apart from the model."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def only_at(model: nn.Module, mask: Tensor | None) -> AbstractContextManager[None]:
    """Have a language model compute its logits at the kept positions alone.

    The hidden states of the other positions are dropped just before the output embedding, the
    largest matrix of most language models, so neither its product nor the logits of those
    positions ever exist. transformers' own ``logits_to_keep`` drops whole columns of a batch; this
    drops exactly what is masked, in masked and causal models alike. What the model does to its
    logits afterwards (a bias, a cap, a scale) acts on each by itself and stays right.

    A model without an output embedding, or one that does not call it as a module on
    ``(batch, positions, width)``, runs as ever: look at the shape of the logits to tell.

    Args:
        model: The model, bare or as a ``HuggingFaceModel``.
        mask: True where a position counts, ``(B, T)``; None to change nothing.

    Shape:
        - logits inside: ``(1, K, C)`` instead of ``(B, T, C)``, with K positions kept.
    """
    head = None if mask is None else _output_embedding(model)
    return nullcontext() if head is None or mask is None else _keep_before(head, mask)


@contextmanager
def _keep_before(head: nn.Module, mask: Tensor) -> Iterator[None]:
    """Hand an output embedding the hidden states of the kept positions alone."""

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, Tensor) or hidden.shape[:-1] != mask.shape:
            return None
        return (hidden[mask].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def without_logits(model: nn.Module) -> AbstractContextManager[Any]:
    """Have a language model compute its logits at one position alone, where nobody reads them."""
    head = _output_embedding(model)
    if head is None:
        return nullcontext()

    def one(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            return None
        return (hidden[:1, :1], *arguments[1:])

    return head.register_forward_pre_hook(one)


# What configurations of transformers call the caps and scales of logits
_MAPS_LOGITS = ("final_logit_softcapping", "logits_soft_cap", "logits_scaling", "logit_scale")
# Below this a cap can hide in the rounding, so the logits are looked at again
_TELLING = 1.0


class Head(NamedTuple):
    """What gives a language model's logits: ``hidden @ weight.T + bias``.

    Shape:
        - hidden: ``(B, T, H)``; weight: ``(V, H)``; bias: ``(V,)`` or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None


class HeadRecorder:
    """Keeps what a model's output embedding is given in a forward, inside a ``with`` block.

    The model is only listened to, by a hook that is gone when the block ends. With ``skip`` the
    embedding is run at one position alone, so that the logits of the others never exist.

    Args:
        model: The model, bare or wrapped.
        owner: Whose it is, for errors.
        skip: Whether to leave out the logits.

    Raises:
        ValueError: If the model has no output embedding that is a ``torch.nn.Linear``, or does more
            with its logits than that.
    """

    def __init__(self, model: nn.Module, owner: str, *, skip: bool) -> None:
        head = _output_embedding(model)
        if not isinstance(head, nn.Linear):
            found = "none" if head is None else type(head).__name__
            raise ValueError(
                f"{owner}: FusedLinearKL needs an output embedding that is a torch.nn.Linear, "
                f"found by get_output_embeddings(), got {found}. Use KLDivergence, which needs "
                "logits alone."
            )
        config = getattr(_owner(model), "config", None)
        for option in _MAPS_LOGITS:
            value = getattr(config, option, None)
            if value not in (None, 1, 1.0):
                raise ValueError(
                    f"{owner}: it caps or scales its logits ({option}={value}), so that they are "
                    "no product of hidden states and a weight. Use KLDivergence."
                )
        self._linear = head
        self._owner = owner
        self._skip = skip
        self._checked = False
        self._handle: Any = None
        self._head: Head | None = None

    def __enter__(self) -> "HeadRecorder":
        self.__exit__()
        self._head = None
        self._handle = self._linear.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def forget(self) -> None:
        """Forget what the last forward recorded."""
        self._head = None

    def take(self, logits: Tensor) -> Head:
        """Return what the last forward recorded, in the type of its logits, and forget it.

        Args:
            logits: What that forward returned: whole, or with ``skip`` at one position.

        Raises:
            ValueError: If nothing was recorded, or the logits are not what the head makes of it.
        """
        head, self._head = self._head, None
        if head is None or head.hidden.ndim != 3:
            raise ValueError(
                f"{self._owner}: its forward did not call its output embedding as a module on "
                "(batch, positions, width), as a model compiled as a whole does not. Use "
                "KLDivergence, which needs logits alone."
            )
        if not self._checked:
            self._checked = self._check(head, logits) > _TELLING
        weight = head.weight.to(logits.dtype)
        bias = None if head.bias is None else head.bias.to(logits.dtype)
        return Head(head.hidden.to(logits.dtype), weight, bias)

    def _record(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, Tensor):
            return None
        self._head = Head(hidden, self._linear.weight, self._linear.bias)
        return (hidden[:1, :1], *arguments[1:]) if self._skip and hidden.ndim == 3 else None

    @torch.no_grad()
    def _check(self, head: Head, logits: Tensor) -> float:
        """Compare one position's logits with the head's own; return the largest of them."""
        dtype, bias = logits.dtype, head.bias
        expected = F.linear(
            head.hidden[0, 0].to(dtype),
            head.weight.to(dtype),
            None if bias is None else bias.to(dtype),
        )
        came = logits[0, 0]
        positions = logits.shape[:2] if self._skip else head.hidden.shape[:2]
        if came.shape == expected.shape and logits.shape[:2] == positions:
            largest = expected.abs().nan_to_num(0.0, 0.0).amax().item()
            tolerance = 16 * torch.finfo(logits.dtype).eps * largest
            if torch.allclose(came, expected, rtol=0.0, atol=tolerance, equal_nan=True):
                return largest
        raise ValueError(
            f"{self._owner}: its logits are not the product of its hidden states and its output "
            "embedding; it scales, caps or maps them afterwards. Use KLDivergence, which reads the "
            "logits themselves."
        )


def _output_embedding(model: nn.Module) -> nn.Module | None:
    owner = _owner(model)
    head = None if owner is None else owner.get_output_embeddings()
    return head if isinstance(head, nn.Module) else None


def _owner(model: nn.Module) -> Any:
    """Return the model that knows its output embedding, bare or inside of wrappers, or None."""
    wrapped = getattr(model, "module", None)  # by DistributedDataParallel
    for outer in (model, wrapped):
        for owner in (outer, getattr(outer, "model", None)):
            if callable(getattr(owner, "get_output_embeddings", None)):
                return owner
    return None
