"""A model built anew from a configuration, and filled with another's weights."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from composer_distill.students.layers import PER_LAYER, lists_of, parts_of

# Numbers of a layer, which may differ from its teacher's: they are what building anew is for
_IGNORED = (
    *PER_LAYER,
    *("layer_idx", "layer_id", "layer_number", "layer_index", "block_idx", "block_id", "layer_num"),
    *("training", "seed"),  # BigBird's, of random blocks
    "has_relative_attention_bias",
)
# How a configuration, and each part of it, holds which kernel computes attention
_ATTENTION = ("_attn_implementation_internal", "_attn_implementation_autoset")
# What T5's first layer has for all others, whichever it comes from
_OF_THE_FIRST = "relative_attention_bias"


def bare(model: Any) -> Any:
    """Return the Hugging Face model of a teacher.

    Raises:
        ImportError: If transformers is not installed.
        TypeError: If it is none, or one whose weights can't be copied as they are.
    """
    try:
        from transformers.modeling_utils import PreTrainedModel
    except ImportError as error:
        raise ImportError(
            "a student is made from a Hugging Face model, which needs transformers: "
            "pip install 'composer-distill[nlp]'"
        ) from error
    inner = _unwrapped(model)
    plain = isinstance(inner, PreTrainedModel)
    # once its adapters are merged a plain model still has their configuration
    adapters = {} if plain else getattr(inner, "peft_config", {})
    prompts = any(getattr(each, "is_prompt_learning", False) for each in adapters.values())
    if not plain and not adapters:
        within = "" if inner is model else f" of a {type(inner).__name__}"
        raise TypeError(
            "model must be a Hugging Face model or Composer's HuggingFaceModel of one, got "
            f"{type(model).__name__}{within}. If one lies within, pass that; for others build the "
            "student and use copy_matching(student, teacher)."
        )
    for found, what, remedy in (
        (getattr(inner, "hf_quantizer", None), "a quantizer", "load it without quantization"),
        (prompts, "prompts of PEFT", "pass its get_base_model(), which is without them"),
        (adapters or _has_adapters(inner), "adapters", "merge them by merge_and_unload() first"),
    ):
        if found:
            raise TypeError(
                f"model must be a plain Hugging Face model, but this {type(inner).__name__} has "
                f"{what}: {remedy}."
            )
    return inner


def _unwrapped(model: Any) -> Any:
    """Return what torch.compile and Composer's HuggingFaceModel were put around."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif any(kind.__name__ == "HuggingFaceModel" for kind in type(model).__mro__):
            model = model.model
        else:
            return model


def _has_adapters(model: nn.Module) -> bool:
    """Return whether PEFT put layers around others."""
    return any(hasattr(module, "_disable_adapters") for module in model.modules())


def checked_batches(batches: Any) -> list[Mapping[str, Any]]:
    """Return batches as a list.

    Raises:
        TypeError: If they are no inputs of a Hugging Face model, by name.
    """
    several: list[Any] = [batches] if isinstance(batches, Mapping | Tensor) else list(batches)
    wrong = next((each for each in several if not isinstance(each, Mapping)), None)
    if wrong is not None or isinstance(batches, Mapping):
        came = "one of them alone" if wrong is None else type(wrong).__name__
        raise TypeError(
            "batches must be several mappings of the model's inputs, such as "
            f"[{{'input_ids': ..., 'labels': ...}}], got {came}."
        )
    return several


def build_like(teacher: Any, config: Any, kept: Mapping[str, Sequence[int]]) -> Any:
    """Build a model of the teacher's class, and copy what stays of the teacher's weights.

    Args:
        teacher: A ``PreTrainedModel``; it stays as it is.
        config: The student's configuration.
        kept: For each list of layers that is shorter, which of the teacher's layers stay.

    Raises:
        ValueError: If a layer or anything beside the lists is not of the teacher's shape or kind.
    """
    student = empty(teacher, config)
    _check_lists(student, teacher, kept)
    for path, indices in kept.items():
        _check_layers(student, teacher, path, indices)
    student.load_state_dict(_weights(student, teacher, kept), assign=True)
    student.tie_weights()
    student.to(teacher.device)  # buffers that are no weights
    student.generation_config = copy.deepcopy(getattr(teacher, "generation_config", None))
    return student.eval()


def empty(teacher: Any, config: Any) -> Any:
    """Return a model whose weights are yet to come, from what would be saved of a configuration."""
    saved = type(config).from_dict(config.to_diff_dict())
    parts = dict(parts_of(saved))
    for where, former in parts_of(teacher.config):
        for name in _ATTENTION:  # to_diff_dict leaves them out
            if name in vars(former) and where in parts:
                setattr(parts[where], name, vars(former)[name])
    with torch.random.fork_rng(devices=[]), _no_init_weights()():
        return type(teacher)(saved)


def _no_init_weights() -> Any:
    """Return what keeps transformers from filling weights, wherever its version has it."""
    from transformers import modeling_utils

    if hasattr(modeling_utils, "no_init_weights"):  # before transformers 5
        return modeling_utils.no_init_weights
    return import_module("transformers.initialization").no_init_weights


def _weights(
    student: nn.Module, teacher: nn.Module, kept: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """Return copies of the teacher's weights under the names of the student's."""
    source = teacher.state_dict()
    copies: dict[int, Tensor] = {}  # what is tied is copied once
    found = {}
    for name, own in student.state_dict().items():
        weight = next((source[n] for n in _names(name, kept) if n in source), None)
        if weight is None or weight.shape != own.shape:
            came = "lacks it" if weight is None else f"has {tuple(weight.shape)}"
            raise ValueError(
                f"layers: a {type(teacher).__name__} can't lose these: the student's {name!r} has "
                f"the shape {tuple(own.shape)}, and the teacher {came}. Its layers differ from one "
                "another, or something beside them counts them: choose others, or build it by hand."
            )
        key = weight.data_ptr() if weight.numel() else id(weight)
        found[name] = copies.setdefault(key, weight.detach().clone())
    return found


def _names(name: str, kept: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yield what the teacher may call a weight of the student's."""
    for path, indices in kept.items():
        if name.startswith(f"{path}."):
            number, _, rest = name[len(path) + 1 :].partition(".")
            yield f"{path}.{indices[int(number)]}.{rest}"
            if number == "0":  # T5's first layer holds what is all layers'
                yield name
            return
    yield name


def _check_lists(student: Any, teacher: Any, kept: Mapping[str, Sequence[int]]) -> None:
    """Refuse a student other lists of which have become shorter too."""
    lengths = {path: len(layers) for path, layers in lists_of(student)}
    for path, layers in lists_of(teacher):
        needed = len(kept[path]) if path in kept else len(layers)
        if lengths.get(path) != needed:
            raise ValueError(
                f"layers: {path!r} of a {type(teacher).__name__} must have {needed} entries, but "
                f"the student's has {lengths.get(path)}: these layers are more than one list. "
                "Build the student by hand."
            )


def _check_layers(student: Any, teacher: Any, path: str, indices: Sequence[int]) -> None:
    """Refuse a student's layer that is of another kind than the teacher's that it comes from."""
    layers: Any = teacher.get_submodule(path)
    for new, layer in enumerate(student.get_submodule(path)):
        differing = _difference(layer, layers[indices[new]], (len(indices), len(layers)))
        if differing:
            raise ValueError(
                f"layers: layer {indices[new]} of {path!r} can't become layer {new} of a "
                f"{type(teacher).__name__}: {differing}. What a layer is depends on its number "
                "here: choose layers that keep the pattern, or build the student by hand."
            )


def _difference(student: nn.Module, teacher: nn.Module, counts: tuple[int, int]) -> str | None:
    """Return in what two layers differ beside their numbers and their weights."""
    others = dict(teacher.named_modules())
    for name, module in student.named_modules():
        if name.endswith(_OF_THE_FIRST):
            continue
        other = others.get(name)
        if type(module) is not type(other):
            return f"its {name!r} would be a {type(module).__name__}, not a {type(other).__name__}"
        mine, theirs = _settings(module), _settings(other)
        for key in sorted(mine.keys() & theirs.keys()):
            if mine[key] != theirs[key] and (mine[key], theirs[key]) != counts:
                place = f"{name}.{key}".lstrip(".")
                return f"its {place!r} would be {mine[key]!r}, not {theirs[key]!r}"
    return None


def _settings(module: Any) -> dict[str, Any]:
    """Return the plain attributes of a module."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and name not in _IGNORED
        if isinstance(value, (bool, int, float, str, tuple, list, type(None)))
    }
