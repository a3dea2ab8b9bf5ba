"""A language model's output head: where it is, and how it is run at some positions only."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from composer_distill.teachers.gathering import unwrapped
from composer_distill.teachers.microbatch import Microbatch


def only_at(model: nn.Module, microbatch: Microbatch) -> AbstractContextManager[None]:
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
        microbatch: Whose ``head_mask``, ``(B, T)``, says which count; nothing changes without one.

    Shape:
        - logits inside: ``(1, K, C)`` instead of ``(B, T, C)``, with K positions kept.
    """
    head = None if microbatch.head_mask is None else output_embedding(model)
    return nullcontext() if head is None else _keep_before(head, microbatch)


@contextmanager
def _keep_before(head: nn.Module, microbatch: Microbatch) -> Iterator[None]:
    """Hand an output embedding the hidden states of the kept positions alone."""

    def keep(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        mask, places = microbatch.head_mask, microbatch.places
        if not isinstance(hidden, Tensor) or mask is None or hidden.shape[:-1] != mask.shape:
            return None
        return (hidden.flatten(0, -2)[places].unsqueeze(0), *arguments[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield
    finally:
        handle.remove()


def without_logits(model: nn.Module) -> AbstractContextManager[Any]:
    """Have a language model compute its logits at one position alone, where nobody reads them."""
    head = output_embedding(model)
    if head is None:
        return nullcontext()

    def one(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden = arguments[0] if arguments else None
        if not isinstance(hidden, Tensor) or hidden.ndim != 3:
            return None
        return (hidden[:1, :1], *arguments[1:])

    return head.register_forward_pre_hook(one)


def output_embedding(model: nn.Module) -> nn.Module | None:
    """Return the module that makes logits of hidden states, without FSDP around it, or None."""
    owner = owner_of_head(model)
    head = None if owner is None else owner.get_output_embeddings()
    return unwrapped(head) if isinstance(head, nn.Module) else None


def owner_of_head(model: nn.Module) -> Any:
    """Return the model that knows its output embedding, bare or inside of wrappers, or None."""
    wrapped = getattr(model, "module", None)  # by DistributedDataParallel
    for outer in (model, wrapped):
        for owner in (outer, getattr(outer, "model", None)):
            if callable(getattr(owner, "get_output_embeddings", None)):
                return owner
    return None
