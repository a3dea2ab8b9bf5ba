"""A teacher's output head, run at some positions only."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def only_at(model: nn.Module, mask: Tensor | None) -> Iterator[None]:
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
    if head is None or mask is None:
        yield
        return

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


def _output_embedding(model: nn.Module) -> nn.Module | None:
    for owner in (model, getattr(model, "model", None)):
        find = getattr(owner, "get_output_embeddings", None)
        head = find() if callable(find) else None
        if isinstance(head, nn.Module):
            return head
    return None
