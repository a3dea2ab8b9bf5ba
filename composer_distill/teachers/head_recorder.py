"""What a language model's logits are made of, taken out of its forward."""

import math
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from composer_distill.teachers.gathering import gathered, is_freed, routed
from composer_distill.teachers.heads import output_embedding, owner_of_head

# What configurations of transformers and LLM Foundry call the caps and scales of logits
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_FACTORS, _DIVISORS = ("logit_scale",), ("logits_scaling",)
# Below this a cap can hide in the rounding, so the logits are looked at again
_TELLING = 1.0


class Head(NamedTuple):
    """What gives a language model's logits: ``hidden @ weight.T + bias``, perhaps capped.

    Attributes:
        hidden: The hidden states, ``(B, T, H)``.
        weight: The output embedding, ``(V, H)``.
        bias: ``(V,)`` or None.
        cap: The logits are ``cap * tanh(product / cap)`` instead of the product; None for no cap.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    cap: float | None = None

    def logits(self, at: Any = slice(None)) -> Tensor:
        """Return the logits of some positions."""
        return capped(F.linear(self.hidden[at], self.weight, self.bias), self.cap)


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return logits that a tanh keeps between ``-cap`` and ``cap``."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class HeadRecorder:
    """Keeps what a model's output embedding is given in a forward, inside a ``with`` block.

    The model is only listened to, by a hook that is gone when the block ends. With ``skip`` the
    embedding is run at one position alone, so that the logits of the others never exist.

    Args:
        model: The model, bare or wrapped.
        owner: Whose it is, for errors.
        skip: Whether to leave out the logits.
        copies: Whether to copy the weight while it is whole, for a model that FSDP cuts and frees
            after its forward, and that wants no gradient.

    Raises:
        ValueError: If the model has no output embedding that is a ``torch.nn.Linear``, or the
            ``torch.nn.Embedding`` that its inputs share.
    """

    def __init__(self, model: nn.Module, owner: str, *, skip: bool, copies: bool = False) -> None:
        module = output_embedding(model)
        if not isinstance(module, (nn.Linear, nn.Embedding)):
            found = "none" if module is None else type(module).__name__
            raise ValueError(
                f"{owner}: FusedLinearKL needs an output embedding that is a torch.nn.Linear or a "
                f"shared torch.nn.Embedding, found by get_output_embeddings(), got {found}. Use "
                "KLDivergence, which needs logits alone."
            )
        config = getattr(owner_of_head(model), "config", None)
        self._scale, self._cap = _scale_of(config), _first(config, _CAPS)
        self._model = model
        self._module = module
        self._owner = owner
        self._skip = skip
        self._copies = copies
        self._checked = False
        self._handle: Any = None
        self._head: Head | None = None
        self._gathered = ExitStack()

    def __enter__(self) -> "HeadRecorder":
        self.__exit__()
        self.forget()
        self._handle = self._module.register_forward_pre_hook(self._record)
        return self

    def __exit__(self, *unused: object) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def forget(self) -> None:
        """Forget what the last forward recorded, and let FSDP free what was gathered for it."""
        self._head = None
        self._gathered.close()

    def take(self, logits: Tensor) -> Head:
        """Return what the last forward recorded, in the type of its logits, and forget it.

        What FSDP has freed since is gathered again, until :meth:`forget`.

        Args:
            logits: What that forward returned: whole, or with ``skip`` at one position.

        Raises:
            ValueError: If nothing was recorded, or the logits are not what the head makes of it.
        """
        head, self._head = self._head, None
        if head is None or head.hidden.ndim != 3:
            raise ValueError(
                f"{self._owner}: its forward did not call its output embedding as a module on "
                "(batch, positions, width). A model compiled as a whole does not, nor one that "
                "calls it on other axes, as ProphetNet does on its streams. Use KLDivergence, "
                "which needs logits alone."
            )
        if is_freed(head.weight):
            head = self._gather(head)
        dtype = logits.dtype
        bias = None if head.bias is None else head.bias.to(dtype)
        head = Head(head.hidden.to(dtype), head.weight.to(dtype), bias, self._cap)
        if self._scale != 1.0:
            bias = None if bias is None else bias * self._scale
            head = head._replace(hidden=head.hidden * self._scale, bias=bias)
        if not self._checked:
            self._checked = self._check(head, logits) > _TELLING
        return head

    def _record(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        # A shared embedding is called with tokens too
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
            return None
        weight, bias = self._module.weight, getattr(self._module, "bias", None)
        if self._copies:
            weight = weight.detach().clone()
            bias = None if bias is None else bias.detach().clone()
        self._head = Head(hidden, weight, bias)
        return (hidden[:1, :1], *arguments[1:]) if self._skip and hidden.ndim == 3 else None

    def _gather(self, head: Head) -> Head:
        """Return the head with the numbers that FSDP gathers again, and the gradient's old way."""
        self._gathered.enter_context(gathered(self._model, self._module))
        weight = routed(head.weight, self._module.weight)
        bias = getattr(self._module, "bias", None)
        if head.bias is not None and bias is not None:
            bias = routed(head.bias, bias)
        return Head(head.hidden, weight, bias)

    @torch.no_grad()
    def _check(self, head: Head, logits: Tensor) -> float:
        """Compare one position's logits with the head's own; return the largest of them."""
        expected, came = head.logits((0, 0)), logits[0, 0]
        positions = logits.shape[:2] if self._skip else head.hidden.shape[:2]
        if came.shape == expected.shape and logits.shape[:2] == positions:
            largest = expected.abs().nan_to_num(0.0, 0.0).amax().item()
            tolerance = 16 * torch.finfo(logits.dtype).eps * largest
            if torch.allclose(came, expected, rtol=0.0, atol=tolerance, equal_nan=True):
                return largest
        named = f", scaled by {self._scale:g}" if self._scale != 1.0 else ""
        named += f", capped at {self._cap:g}" if self._cap is not None else ""
        named += " as its configuration says" if named else ""
        raise ValueError(
            f"{self._owner}: its logits are not the product of its hidden states and its output "
            f"embedding{named}; it scales, caps or maps them afterwards. Use KLDivergence, which "
            "reads the logits themselves."
        )


def _scale_of(config: Any) -> float:
    """Return what a configuration says that logits are multiplied by."""
    factor, divisor = _first(config, _FACTORS), _first(config, _DIVISORS)
    return (1.0 if factor is None else factor) / (1.0 if divisor is None else divisor)


def _first(config: Any, names: tuple[str, ...]) -> float | None:
    """Return the number that a configuration has under one of some names, or None."""
    for name in names:
        value = getattr(config, name, None)
        if value == "inv_sqrt_d_model":  # of LLM Foundry's MPT
            return 1.0 / math.sqrt(config.d_model)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
    return None
