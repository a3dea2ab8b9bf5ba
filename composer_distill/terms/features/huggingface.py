"""What Hugging Face models have beside modules: hidden states, attention, queries, keys, values."""

import math
from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

from composer_distill.terms.features.layers import Layer, layers_by_name
from composer_distill.terms.features.names import roots
from composer_distill.terms.features.recorder import Tap

ENTRIES = ("hidden_states", "attentions")
PROJECTIONS = {
    "queries": ("q_proj", "query", "q_lin", "q", "wq"),
    "keys": ("k_proj", "key", "k_lin", "k", "wk"),
    "values": ("v_proj", "value", "v_lin", "v", "wv"),
}
FUSED = ("c_attn", "Wqkv", "qkv_proj")
"""Queries, keys and values side by side. Where heads are interleaved they can't be told apart."""

KINDS = (*ENTRIES, *PROJECTIONS, "attention", "scores")
# Whose scores are the product of queries and keys and nothing else: no rotation, no bias
_PLAIN = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "vit", "deit")


def read_layers(
    model: nn.Module, named: Any, of: Literal["output", "input"], owner: str
) -> list[Layer]:
    """Return the layers that a user names.

    Args:
        model: The model, wrapped or not.
        named: A name, a glob, a sequence of both, or a callable.
        of: Whether outputs or inputs of modules are wanted.
        owner: Whose layers they are, for errors.

    Raises:
        ValueError: If a name is unknown.
    """
    if callable(named):
        return [Layer(getattr(named, "__name__", type(named).__name__), function=named)]
    layers: list[Layer] = []
    for name in [named] if isinstance(named, str) else named:
        special = huggingface_layers(model, name, owner)
        layers += layers_by_name(model, name, of, owner) if special is None else special
    return layers


def huggingface_layers(model: nn.Module, name: str, owner: str) -> list[Layer] | None:
    """Return the layers of a name such as ``'hidden_states.3'``; None where it is no such name.

    ``hidden_states.0`` is what the embeddings give and ``hidden_states.i`` what layer i - 1 gives,
    as in transformers' outputs; all else counts layers from 0. ``*`` stands for each layer.

    Args:
        model: The model, wrapped or not.
        name: What the user wrote.
        owner: Whose layers they are, for errors.

    Raises:
        ValueError: If the model has no such layer, or can't give it.
    """
    kind, _, index = name.partition(".")
    whole = _pretrained(model)
    if whole is None or kind not in KINDS or not (index.isdigit() or index == "*"):
        return None
    count, first = _number(whole.config, "layers"), int(kind == "hidden_states")
    wanted = range(first, count + first) if index == "*" else [int(index)]
    if wanted[-1] >= count + first:
        raise ValueError(
            f"{owner} has no {name!r}: it has {count} layers, and {kind}.{count + first - 1} is "
            "the last."
        )
    make = _entry if kind in ENTRIES else _projected
    return [make(whole, kind, i, owner) for i in wanted]


def _pretrained(model: nn.Module) -> Any:
    """Return the outermost model of transformers in it, or None."""
    for root in roots(model):
        if callable(getattr(root, "get_input_embeddings", None)) and hasattr(root, "config"):
            return root
    return None


def _entry(whole: Any, kind: str, index: int, owner: str) -> Layer:
    how = getattr(whole.config, "_attn_implementation", "eager")
    if kind == "attentions" and how != "eager":
        raise ValueError(
            f"{owner}: attentions.{index} needs attention maps, which attn_implementation={how!r} "
            "never makes. Build the model with attn_implementation='eager', or compare "
            f"'attention.{index}' with MiniLMRelation, which needs none."
        )
    name = f"{kind}.{index}"
    return Layer(name, (Tap(name, whole, key=kind, index=index),))


def _projected(whole: Any, kind: str, index: int, owner: str) -> Layer:
    """Return queries, keys, values, all three, or scores of a layer."""
    found = {part: _modules(whole, names) for part, names in PROJECTIONS.items()}
    fused, count = _modules(whole, FUSED), _number(whole.config, "layers")
    name, config = f"{kind}.{index}", whole.config
    apart = all(len(modules) == count for modules in found.values())
    if getattr(config, "is_encoder_decoder", False) or not (apart or len(fused) == count):
        raise ValueError(
            f"{owner}: {name} is not to be found, since its layers do not have one projection each "
            f"of queries, keys and values by the usual names ({len(found['queries'])} of queries, "
            f"{len(fused)} of all, {count} layers). Name the modules themselves."
        )
    if kind == "scores":
        _check_scores(config, owner)
    parts = tuple(PROJECTIONS)
    if not apart:
        tap = Tap(*fused[index])
        return Layer(name, (tap,), _chosen(kind, config, lambda x: _split(x, config, owner)))
    if kind in parts:
        return Layer(name, (Tap(*found[kind][index]),))
    taps = tuple(Tap(*found[part][index]) for part in parts)
    return Layer(name, taps, _chosen(kind, config, None))


def _check_scores(config: Any, owner: str) -> None:
    """Refuse scores of a model that does more with queries and keys than to multiply them."""
    plain = getattr(config, "position_embedding_type", None) in (None, "absolute")
    kind = getattr(config, "model_type", None)
    if not plain or kind not in _PLAIN:
        raise ValueError(
            f"{owner}: scores are made of queries and keys alone, and a model of type {kind!r} "
            "does more with them. Use 'attentions' with AttentionKL, or 'attention' with "
            "MiniLMRelation."
        )


def _chosen(
    kind: str, config: Any, split: Callable[[Tensor], tuple[Tensor, ...]] | None
) -> Callable[..., Any]:
    """Return what makes the wanted of queries, keys and values."""

    def make(*tensors: Tensor) -> Any:
        three = tensors if split is None else split(tensors[0])
        if kind == "attention":
            return three
        if kind == "scores":
            return scores(three[0], three[1], _number(config, "heads"))
        return three[tuple(PROJECTIONS).index(kind)]

    return make


def scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Return attention scores, before mask and softmax.

    Shape:
        - queries, keys: ``(B, L, D)``; result: ``(B, heads, L, L)``.
    """
    q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
    return q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])


def _split(together: Tensor, config: Any, owner: str) -> tuple[Tensor, ...]:
    """Return queries, keys and values that lie side by side."""
    heads = _number(config, "heads")
    width = getattr(config, "head_dim", None) or _number(config, "width") // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    sizes = [heads * width, shared * width, shared * width]
    if sum(sizes) != together.shape[-1]:
        raise ValueError(
            f"{owner}: its projection of queries, keys and values is {together.shape[-1]} wide, "
            f"where its configuration says {sizes}. Name other layers."
        )
    return together.split(sizes, dim=-1)


def _modules(whole: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    """Return the modules whose own name is one of these, in the order of the model."""
    return [(path, m) for path, m in whole.named_modules() if path.rpartition(".")[2] in names]


_FIELDS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
}


def _number(config: Any, what: str) -> int:
    for field in _FIELDS[what]:
        value = getattr(config, field, None)
        if isinstance(value, int):
            return value
    raise ValueError(f"the configuration {type(config).__name__} does not tell its {what}.")
