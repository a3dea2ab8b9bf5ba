"""What each axis of each weight is, in the architectures whose width can be cut."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["hidden", "intermediate", "query", "key"] | None
"""What the entries of an axis are: channels, neurons, those of query heads, or of key heads."""


@dataclass(frozen=True)
class Family:
    """Architectures whose modules have the same names.

    Args:
        types: What their configurations call them.
        layers: How the path of a layer ends, before its number.
        axes: What the axes of a weight are, by the end of its module's name; a bias has the first.
        attention: Within a layer, the module that reads all heads' answers side by side.
        neurons: Within a layer, the module that reads the neurons.
        has_head_size: Whether the configuration tells the size of a head apart from the width.
    """

    types: frozenset[str]
    layers: str
    axes: Mapping[str, tuple[Role, ...]]
    attention: str
    neurons: str
    has_head_size: bool

    def head_size(self, config: Any) -> int:
        """Return how many channels a head has."""
        size = getattr(config, "head_dim", None) if self.has_head_size else None
        return size or config.hidden_size // config.num_attention_heads

    def key_value_heads(self, config: Any) -> int:
        """Return how many heads there are of keys and values."""
        return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


LLAMA = Family(
    frozenset(("llama", "mistral", "qwen2", "qwen3")),
    "layers",
    {
        "embed_tokens": (None, "hidden"),
        "lm_head": (None, "hidden"),
        "score": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "q_norm": (None,),
        "k_norm": (None,),
        "norm": ("hidden",),
        "input_layernorm": ("hidden",),
        "post_attention_layernorm": ("hidden",),
        "self_attn.q_proj": ("query", "hidden"),
        "self_attn.k_proj": ("key", "hidden"),
        "self_attn.v_proj": ("key", "hidden"),
        "self_attn.o_proj": ("hidden", "query"),
        "mlp.gate_proj": ("intermediate", "hidden"),
        "mlp.up_proj": ("intermediate", "hidden"),
        "mlp.down_proj": ("hidden", "intermediate"),
    },
    "self_attn.o_proj",
    "mlp.down_proj",
    has_head_size=True,
)
BERT = Family(
    frozenset(("bert", "camembert", "roberta", "xlm-roberta")),
    "layer",
    {
        "embeddings.word_embeddings": (None, "hidden"),
        "embeddings.position_embeddings": (None, "hidden"),
        "embeddings.token_type_embeddings": (None, "hidden"),
        "LayerNorm": ("hidden",),
        "layer_norm": ("hidden",),
        "attention.self.query": ("query", "hidden"),
        "attention.self.key": ("query", "hidden"),
        "attention.self.value": ("query", "hidden"),
        "attention.output.dense": ("hidden", "query"),
        "intermediate.dense": ("intermediate", "hidden"),
        "output.dense": ("hidden", "intermediate"),
        "pooler.dense": ("hidden", "hidden"),
        "transform.dense": ("hidden", "hidden"),
        "lm_head.dense": ("hidden", "hidden"),
        "classifier.dense": ("hidden", "hidden"),
        "decoder": (None, "hidden"),
        "classifier.out_proj": (None, "hidden"),
        "classifier": (None, "hidden"),
        "seq_relationship": (None, "hidden"),
        "qa_outputs": (None, "hidden"),
        "predictions": (None,),  # their bias
        "lm_head": (None,),
    },
    "attention.output.dense",
    "output.dense",
    has_head_size=False,
)
FAMILIES = (LLAMA, BERT)
_UNCUT = ("position_ids", "token_type_ids", "inv_freq")  # buffers


def family_of(model: Any) -> Family:
    """Return the family of a Hugging Face model.

    Raises:
        ValueError: If it is of none.
    """
    kind = getattr(model.config, "model_type", "")
    for family in FAMILIES:
        if kind in family.types:
            return family
    known = ", ".join(sorted(name for family in FAMILIES for name in family.types))
    raise ValueError(
        f"hidden, intermediate and heads: where a {type(model).__name__} ({kind}) has its channels "
        f"and heads is not known; the width of these can be cut: {known}. Use layers= alone, or "
        "build the student by hand and copy_matching(student, teacher)."
    )


def roles_of(name: str, family: Family) -> tuple[int | None, Sequence[Role]]:
    """Return the layer of a weight, None outside of all, and what its axes are.

    Raises:
        ValueError: If the weight is not known.

    Example:
        >>> roles_of("model.layers.3.mlp.down_proj.weight", LLAMA)
        (3, ('hidden', 'intermediate'))
    """
    module, _, kind = name.rpartition(".")
    if kind in _UNCUT:
        return None, ()
    found = re.search(rf"(?:^|\.){family.layers}\.(\d+)\.", name)
    ends = [end for end in family.axes if f".{module}".endswith(f".{end}")]
    if not ends:
        raise ValueError(
            f"hidden, intermediate and heads: what the axes of the weight {name!r} are is not "
            "known, so that they can't be cut. Use layers= alone, or build the student by hand."
        )
    axes = family.axes[max(ends, key=len)]
    return None if found is None else int(found[1]), axes[:1] if kind == "bias" else axes
