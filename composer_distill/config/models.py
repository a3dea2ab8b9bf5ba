"""A teacher's model as LLM Foundry writes it: ``{name: mpt_causal_lm, d_model: 768, ...}``."""

import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from composer_distill.config.names import unknown
from composer_distill.config.reading import place
from composer_distill.teachers.streams import untouched_streams
from composer_distill.teachers.tokenizers import stored_tokenizer
from composer_distill.weights.checkpoint import open_source
from composer_distill.weights.errors import named_errors

# What would bring weights or code of its own; a teacher's weights are its checkpoint's
_REFUSED = ("pretrained", "pretrained_lora_id_or_path", "trust_remote_code", "load_in_8bit")


def build_model(config: Any, checkpoint: str, name: str, path: str) -> nn.Module:
    """Build a model through LLM Foundry's registry, on the CPU, with its checkpoint's tokenizer.

    No code that comes with a model is run, and no random stream of the student moves.

    Args:
        config: The mapping, as ``model`` in a YAML of LLM Foundry.
        checkpoint: Where its weights will come from; the tokenizer is read here.
        name: What errors call the teacher.
        path: Where the mapping stands, for errors.

    Raises:
        ImportError: If LLM Foundry is not installed.
        TypeError: If it is no mapping.
        ValueError: If there is no such model, or no such key.
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"{path} must be a mapping as LLM Foundry's model, got {config!r}.")
    if "name" not in config:
        raise ValueError(f"{path}.name is missing: say which of LLM Foundry's models it is.")
    settings: dict[str, Any] = {str(key): value for key, value in config.items()}
    kind, dtype = settings.pop("name"), settings.pop("master_weights_dtype", None)
    made_of = _class(kind, path)
    for key in settings:
        _check_key(key, settings[key], _known(made_of), path)
    given = {
        "name": kind,
        "cfg": {**settings, **_fixed(made_of)},
        "tokenizer": place(
            partial(_tokenizer, checkpoint, name), path.rpartition(".")[0], {}, "checkpoint"
        ),
        "master_weights_dtype": dtype,
    }
    with untouched_streams():
        return place(import_module("llmfoundry.utils.builders").build_composer_model, path, given)


def _tokenizer(checkpoint: str, name: str) -> Any:
    with named_errors(name, checkpoint), open_source(checkpoint) as contents:
        return stored_tokenizer(contents.stored, name)


def _class(kind: Any, path: str) -> Any:
    try:
        import_module("llmfoundry.models")  # fills the registry
        models = import_module("llmfoundry.registry").models
    except ImportError as error:
        raise ImportError(
            f"{path}: models as LLM Foundry writes them need it: pip install "
            "'composer-distill[foundry]'. Or leave model out, for a Hugging Face model of Composer."
        ) from error
    if kind not in models:
        known = models.get_all()
        raise ValueError(f"{path}.name: LLM Foundry has no model {kind!r}. {unknown(kind, known)}")
    return models.get(kind)


def _check_key(key: str, value: Any, known: set[str], path: str) -> None:
    if key in _REFUSED and value:
        raise ValueError(
            f"{path}.{key} would bring weights or code beside those of checkpoint. Leave it out; "
            "for a Hugging Face folder use pretrained_model_name_or_path alone."
        )
    if known and key not in known:
        raise ValueError(f"{path}.{key}: there is no such setting. {unknown(key, known)}")


def _known(made_of: Any) -> set[str]:
    """Return the settings that a model knows; none where it takes any."""
    mpt = import_module("llmfoundry.models.mpt")
    parameters = inspect.signature(made_of).parameters
    known = {name for name, each in parameters.items() if each.kind is not each.VAR_KEYWORD}
    if len(known) < len(parameters):
        if not issubclass(made_of, mpt.ComposerMPTCausalLM):
            return set()
        known |= {*inspect.signature(mpt.MPTConfig).parameters, *mpt.MPTConfig().to_dict()}
    return known - {"tokenizer"}


def _fixed(made_of: Any) -> dict[str, Any]:
    """Return what holds for any teacher: whole, of its checkpoint alone, with no loss of a GPU."""
    fixed = {
        "init_device": "cpu",
        "loss_fn": "torch_crossentropy",
        "pretrained": False,
        "trust_remote_code": False,
    }
    known = _known(made_of)
    return {key: value for key, value in fixed.items() if key in known}
