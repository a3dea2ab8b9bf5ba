"""What of a language model its memory and its time depend on."""

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

# Keys of a config.json by our names, the older GPT-2's behind
_KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "vocab": ("vocab_size",),
    "positions": ("n_positions", "n_ctx"),
    "tied": ("tie_word_embeddings",),
}
_WITHOUT_GATE = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "falcon", "phi", "mpt")


@dataclass(frozen=True)
class Shape:
    """A decoder: Llama's blocks, or with ``gated=False`` GPT-2's.

    Args:
        layers: How many blocks.
        hidden: The width between them.
        vocab: How many rows the embedding has.
        heads: Heads of the queries; 0 for widths of 128.
        intermediate: The width inside of a block's MLP; 0 for what the family has.
        kv_heads: Heads of keys and values; 0 for as many as queries.
        head_size: The width of a head; 0 for ``hidden / heads``.
        positions: How many positions are learned; 0 for none, as with rotary ones.
        tied: Whether the head is the embedding.
        gated: Whether the MLP has three matrices and norms have no bias, as Llama's.

    Example:
        >>> SHAPES["8b"].parameters
        8030261248
    """

    layers: int
    hidden: int
    vocab: int
    heads: int = 0
    intermediate: int = 0
    kv_heads: int = 0
    head_size: int = 0
    positions: int = 0
    tied: bool = False
    gated: bool = True

    @property
    def inner(self) -> int:
        """The width inside of a block's MLP."""
        family = 8 * self.hidden // 3 if self.gated else 4 * self.hidden
        return self.intermediate or family

    @property
    def width_of_queries(self) -> int:
        """How wide queries are, all heads together."""
        return self.head_size * self.heads or self.hidden

    @property
    def block(self) -> int:
        """Parameters of a block."""
        of_keys = self.width_of_queries * (self.kv_heads or self.heads or 1) // (self.heads or 1)
        matrices = self.hidden * (2 * self.width_of_queries + 2 * of_keys)
        matrices += (3 if self.gated else 2) * self.hidden * self.inner
        vectors = 2 * self.hidden if self.gated else 9 * self.hidden + self.inner
        return matrices + vectors

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocab * self.hidden

    @property
    def ends(self) -> int:
        """Parameters before and behind the blocks."""
        of_norm = self.hidden if self.gated else 2 * self.hidden
        matrices = self.embedding * (1 if self.tied else 2) + self.positions * self.hidden
        return matrices + of_norm

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.layers * self.block + self.ends


# Llama 3's, by their usual names
_LLAMA = Shape(layers=32, hidden=4096, vocab=128256, heads=32, intermediate=14336, kv_heads=8)
SHAPES = {
    "1b": replace(_LLAMA, layers=16, hidden=2048, intermediate=8192, tied=True),
    "3b": replace(_LLAMA, layers=28, hidden=3072, heads=24, intermediate=8192, tied=True),
    "8b": _LLAMA,
    "70b": replace(_LLAMA, layers=80, hidden=8192, heads=64, intermediate=28672),
}
"""Shapes that have a name."""


def read_shape(text: str, argument: str) -> Shape:
    """Return the shape that a user named.

    Args:
        text: A name of :data:`SHAPES`, a Hugging Face folder or ``config.json``, or
            ``layers=32,hidden=4096,vocab=128256`` and more fields of :class:`Shape`.
        argument: What errors call it.

    Raises:
        ValueError: If it is none of these, or lacks layers, width or vocabulary.
    """
    if text in SHAPES:
        return SHAPES[text]
    if "=" in text:
        return _from_fields(text, argument)
    path = Path(text)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"{argument} needs one of {', '.join(SHAPES)}, a folder with a config.json, or "
            f"layers=...,hidden=...,vocab=..., got {text!r}."
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{argument}: {path} is no JSON ({error}).") from error
    return _from_config(config, f"{argument}: {path}")


def _from_fields(text: str, argument: str) -> Shape:
    known = {field.name: field.type for field in fields(Shape)}
    given: dict[str, Any] = {}
    for item in text.split(","):
        name, _, value = (part.strip() for part in item.partition("="))
        if name not in known or not value.isdecimal():
            raise ValueError(
                f"{argument} needs whole numbers for {', '.join(known)} (0 or 1 for the last two), "
                f"got {item!r}."
            )
        given[name] = bool(int(value)) if known[name] in (bool, "bool") else int(value)
    return _whole(given, argument)


def _from_config(config: Any, argument: str) -> Shape:
    if not isinstance(config, dict):
        raise ValueError(f"{argument} needs an object, got a {type(config).__name__}.")
    config = config.get("text_config") or config
    given = {
        name: next((config[key] for key in keys if config.get(key) is not None), None)
        for name, keys in _KEYS.items()
    }
    kind = str(config.get("model_type", ""))
    given["gated"] = kind not in _WITHOUT_GATE
    if given["tied"] is None:
        given["tied"] = kind == "gpt2"  # transformers leaves a default out of the file
    return _whole({name: value for name, value in given.items() if value is not None}, argument)


def _whole(given: dict[str, Any], argument: str) -> Shape:
    missing = [name for name in ("layers", "hidden", "vocab") if not given.get(name)]
    if missing:
        raise ValueError(f"{argument} lacks {' and '.join(missing)}, or has 0 of them.")
    return Shape(**given)
