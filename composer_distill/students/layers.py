"""Where the architectures of transformers keep their layers: the one table of it."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

# How the path of a list of layers ends, and what configurations call its length. Of the names of a
# row those count that the configuration has with this very length, an alias of another included.
_LISTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("text_encoder.layers", ("encoder_layers", "num_hidden_layers")),
    ("text_decoder.layers", ("decoder_layers",)),
    ("encoder.layers", ("encoder_layers", "num_encoder_layers", "num_hidden_layers")),
    ("encoder.layer", ("num_hidden_layers",)),
    ("encoder.block", ("num_layers",)),
    ("decoder.layers", ("decoder_layers", "num_decoder_layers", "num_hidden_layers")),
    ("decoder.block", ("num_decoder_layers",)),
    ("audio_tower.layers", ("encoder_layers", "num_hidden_layers")),
    ("transformer.layer", ("n_layers", "n_layer")),
    ("layers", ("num_hidden_layers",)),
    ("blocks", ("num_hidden_layers", "depth")),
    ("h", ("num_hidden_layers",)),
)
# Settings of which a configuration holds one a layer
PER_LAYER = (
    "activation_sparsity_pattern",
    "attention_layers",
    "attention_types",
    "attention_window",
    "attn_type_list",
    "intermediate_size",
    "layer_types",
    "layers_block_type",
    "no_rope_layers",
)
# Settings that are lists of layers, by their numbers
INDICES = (
    "attn_layer_indices",
    "cross_attention_layers",
    "fullatt_block_indexes",
    "mlp_only_layers",
    "moe_layers",
)
# Settings that say how many of the first layers are special
FIRST = ("first_k_dense_replace",)
# Settings that say which hidden states of a tower of images are read: of as many as it has layers,
# and one more
HIDDEN_STATES = ("vision_feature_layer", "vision_feature_layers", "intermediate_layers_indices")
# Switches with which what a layer computes depends on its number, which a student's layers change
BY_NUMBER = ("scale_attn_by_inverse_layer_idx",)
# Architectures whose weights depend on the layer's number, and which no attribute tells
REFUSED = {
    "funnel": "its layers stand in blocks of unlike length",
    "reformer": "its layers hand on two streams, and are undone in backward",
    "rwkv": "its weights are rescaled in place by the number of their layer",
}


class Stack(NamedTuple):
    """One list of layers.

    Attributes:
        path: Its name within the model, such as ``model.decoder.layers``.
        length: How many layers it has.
        config: Attributes that lead from the model's configuration to the one that counts them.
        counts: What that configuration calls their number.
    """

    path: str
    length: int
    config: tuple[str, ...]
    counts: tuple[str, ...]

    def config_of(self, config: Any) -> Any:
        """Return the configuration that counts these layers, within a model's."""
        for name in self.config:
            config = getattr(config, name)
        return config

    def __str__(self) -> str:
        return f"{self.path} ({self.length})"


def stacks_of(model: Any, named: Mapping[str, str] | None = None) -> tuple[Stack, ...]:
    """Find the lists of layers of a Hugging Face model.

    Args:
        model: A ``PreTrainedModel``.
        named: The user's own: paths of lists, and what the configuration calls their lengths.

    Raises:
        TypeError: If ``named`` is no mapping that names one.
        ValueError: If there are none, or one that is named does not exist.
    """
    _refuse(model)
    if named is not None:
        if not isinstance(named, Mapping) or not named:
            raise TypeError(
                "stacks must map paths of lists to what the configuration calls their lengths, "
                f"such as {{'backbone.steps': 'depth'}}, got {named!r}."
            )
        return tuple(_named_stack(model, path, count) for path, count in named.items())
    found = [_known_stack(model, path, layers) for path, layers in lists_of(model)]
    stacks = tuple(stack for stack in found if stack is not None)
    if not stacks:
        lists = ", ".join(f"{path} ({len(layers)})" for path, layers in lists_of(model)) or "none"
        raise ValueError(
            f"layers: where a {type(model).__name__} keeps its layers is not known; its lists of "
            f"modules are: {lists}. Name the list and what its configuration calls the number of "
            "layers, such as stacks={'model.layers': 'num_hidden_layers'}, or "
            "'text_config.num_hidden_layers' where a part of the configuration holds it."
        )
    return stacks


def lists_of(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Yield the lists of modules that stand in no other list, by their paths."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(p.isdigit() for p in path.split(".")):
            yield path, module


def matching(name: Any, paths: Iterable[str]) -> list[str]:
    """Return the paths that a user's name may mean: itself, or those of which it is a part.

    Example:
        >>> matching("encoder", ["encoder.block", "decoder.block"])
        ['encoder.block']
    """
    paths = list(paths)
    return [p for p in paths if p == name] or [p for p in paths if name in p.split(".")]


def _known_stack(model: Any, path: str, layers: nn.ModuleList) -> Stack | None:
    where, config = _config_of(model, path)
    for end, names in _LISTS:
        if f".{path}".endswith(f".{end}"):
            counts = [name for name in names if getattr(config, name, None) == len(layers)]
            if counts:
                # What a whole model calls its own length is its encoder's
                counts = counts[:1] if "decoder" in end else counts
                return Stack(path, len(layers), where, tuple(counts))
    return None


def _named_stack(model: Any, path: str, count: str) -> Stack:
    layers = dict(lists_of(model)).get(path)
    if layers is None:
        raise ValueError(
            f"stacks names {path!r}, which is no list of modules of a {type(model).__name__}; "
            f"its lists are {', '.join(path for path, _ in lists_of(model)) or 'none'}."
        )
    *inner, name = str(count).split(".")
    where = tuple(inner) or _config_of(model, path)[0]
    config = model.config
    for part in where:
        config = getattr(config, part, None)
    if getattr(config, name, None) != len(layers):
        raise ValueError(
            f"stacks says that {count!r} counts the {len(layers)} layers of {path!r}, but in the "
            f"configuration it is {getattr(config, name, 'not there')!r}. Name the setting that "
            "does, with the part of the configuration that holds it, such as "
            "'text_config.num_hidden_layers'."
        )
    return Stack(path, len(layers), where, (name,))


def _config_of(model: Any, path: str) -> tuple[tuple[str, ...], Any]:
    """Return where in the model's configuration that of the module around a list stands.

    A module's own may be a copy of it: then it is the only part of that class.
    """
    places = list(parts_of(model.config))
    parts = path.split(".")[:-1]
    while parts:
        own = getattr(model.get_submodule(".".join(parts)), "config", None)
        same = [place for place in places if place[1] is own]
        alike = [place for place in places if type(place[1]) is type(own)]
        if same or len(alike) == 1:
            return (same or alike)[-1]
        parts = parts[:-1]
    return (), model.config


def parts_of(config: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a configuration and those within it, with the attributes that lead to them."""
    yield where, config
    for name, value in vars(config).items():
        if isinstance(value, _config_class()):
            yield from parts_of(value, (*where, name))


def _config_class() -> type:
    from transformers.configuration_utils import PretrainedConfig

    return PretrainedConfig


def _refuse(model: Any) -> None:
    """Refuse what no student can be made of, by name."""
    kind = getattr(model.config, "model_type", "")
    by_number = [name for name in BY_NUMBER if getattr(model.config, name, False)]
    reason = REFUSED.get(kind) or (f"{by_number[0]} is set" if by_number else None)
    if reason:
        raise ValueError(
            f"model: a {type(model).__name__} can't lose layers, since {reason}: the others would "
            "no longer compute what they did. Build the student by hand and train it from scratch."
        )
