"""Hugging Face models, built and filled from a folder, a name, or a Composer checkpoint."""

import importlib
import logging
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from composer_distill.teachers.confinement import check_settings, confined
from composer_distill.teachers.streams import untouched_streams
from composer_distill.teachers.tokenizers import folder_tokenizer, stored_tokenizer
from composer_distill.weights.checkpoint import open_source
from composer_distill.weights.contents import Contents
from composer_distill.weights.errors import named_errors
from composer_distill.weights.json_files import read_json
from composer_distill.weights.memory import copy_out
from composer_distill.weights.wording import plain

if TYPE_CHECKING:
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_utils import PreTrainedModel

log = logging.getLogger(__name__)


def build_pretrained(
    folder_or_name: str | Path, *, strict: bool = True, name: str = "from_pretrained"
) -> "PreTrainedModel":
    """Build the model of a Hugging Face folder or name, of the class that it was saved from.

    transformers reads the weights, as plain data; code that comes with a model is never run. They
    keep the type that they have in the folder. The tokenizer beside them, if there is one, becomes
    the model's attribute ``tokenizer``, to be compared with the student's.

    Args:
        folder_or_name: A local folder, or a name on the hub.
        strict: Whether every weight of the model must be there. Weights that the model has no use
            for are only logged: published files often hold another task's head.
        name: What errors call the teacher.

    Raises:
        ImportError: If transformers is not installed.
        OSError: If there is no such folder, or it cannot be read.
        ValueError: If the folder does not tell a class, the class is not one of transformers', or
            weights are missing or of another shape.
    """
    with named_errors(name, folder_or_name):
        transformers = _transformers()
        model = _build_pretrained(transformers, _folder_or_name(folder_or_name), strict=strict)
        copy_out(model)
        return model


def _build_pretrained(transformers: Any, where: str, *, strict: bool) -> "PreTrainedModel":
    dtype: Any = "auto"
    if Path(where).is_dir():  # what is not to be read is said in our words, before transformers'
        with open_source(where) as contents:
            dtype = _type_of(contents)
    settings = _settings(where)
    with untouched_streams(), confined(where, settings):
        config = _read_config(transformers, where)
        check_settings(config.to_dict())
        model_class = _own_class(transformers, config, where)
        model, info = model_class.from_pretrained(
            where,
            config=config,
            trust_remote_code=False,
            weights_only=True,
            torch_dtype=dtype,
            output_loading_info=True,
        )
    wrong = [*_lacking(model, info), *(entry[0] for entry in info["mismatched_keys"])]
    if wrong and strict:
        raise ValueError(
            f"it lacks {len(wrong)} weights of a {model_class.__name__}, or has them in "
            f"another shape ({', '.join(sorted(wrong)[:4])}); name the folder of a complete model"
        )
    if info["unexpected_keys"]:
        log.info("%s: %d weights are not used", where, len(info["unexpected_keys"]))
    model.tokenizer = folder_tokenizer(where, "from_pretrained")
    return model


def reduced_type(model: nn.Module) -> torch.dtype | None:
    """The one type of all of a model's weights, None where it is float32 or there are several.

    Example:
        >>> reduced_type(nn.Linear(2, 1).bfloat16()), reduced_type(nn.Linear(2, 1))
        (torch.bfloat16, None)
    """
    types = {parameter.dtype for parameter in model.parameters()}
    only = types.pop() if len(types) == 1 else torch.float32
    return None if only is torch.float32 else only


def build_from_composer(source: str | Path, *, name: str) -> nn.Module:
    """Build the ``HuggingFaceModel`` whose configuration a Composer checkpoint stores.

    It gets the checkpoint's tokenizer too, if there is one. Its weights are not loaded here. Only
    classes of the transformers library are looked up: a checkpoint cannot name other code to run.

    Args:
        source: The checkpoint.
        name: What errors call the teacher.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the checkpoint stores no configuration, or one of a class that is not
            transformers' own.
    """
    from composer.models import HuggingFaceModel

    with named_errors(name, source), open_source(source) as contents:
        transformers = _transformers()
        entry = _stored_model(contents.stored)
        path, settings = plain(entry.get("class")), dict(entry.get("content") or {})
        model_class = _transformers_class(transformers, path)
        with untouched_streams(), confined(None, settings):
            config = _config(model_class, settings)
            model: Any = HuggingFaceModel(model_class(config))
        model.tokenizer = stored_tokenizer(contents.stored, name)
        return model


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ImportError(
            "Hugging Face models need transformers: pip install 'composer-distill[nlp]'"
        ) from error
    return transformers


def _settings(where: str) -> Any:
    """What a folder's configuration says, before anything is made of it."""
    file = Path(where) / "config.json"
    return read_json(file) if file.is_file() else None


def _read_config(transformers: Any, where: str) -> "PretrainedConfig":
    try:
        return transformers.AutoConfig.from_pretrained(where, trust_remote_code=False)
    except OSError as error:
        if Path(where).is_dir():
            raise
        raise OSError(
            f"there is no folder {where!r} here, so that it was taken for a name "
            f"on the Hugging Face hub, which gave no model ({type(error).__name__}). Check the "
            "path, or the name and the connection."
        ) from error


def _folder_or_name(given: str | Path) -> str:
    path = Path(given).expanduser()
    if path.is_dir():
        return str(path)
    if isinstance(given, Path) or path.exists() or str(given).startswith(("/", ".", "~")):
        raise FileNotFoundError(
            f"there is no folder {path} to read a Hugging Face model from; check the path"
        )
    return given


def _own_class(transformers: Any, config: "PretrainedConfig", where: str) -> Any:
    names = config.architectures or []
    found = getattr(transformers, str(names[0]), None) if len(names) == 1 else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(
            f"it names {names or 'no class'} as its architecture, where one class of "
            "transformers is needed; build the model yourself and pass Teacher(model)"
        )
    return found


def _type_of(contents: Contents) -> torch.dtype | None:
    """The widest floating-point type of a folder's weights; a configuration may tell another."""
    types = {spec.dtype for spec in contents.specs.values()}
    floating = [each for each in types if each.is_floating_point and each.itemsize > 1]
    return reduce(torch.promote_types, floating) if floating else None


def _lacking(model: nn.Module, info: Mapping[str, Any]) -> list[str]:
    """The weights that are missing, but for batch norm's counters where a file has not one."""
    counters = {key for key in model.state_dict() if key.endswith("num_batches_tracked")}
    missing = set(info["missing_keys"])
    return sorted(missing - counters if counters <= missing else missing)


def _stored_model(stored: Mapping[str, Any]) -> Mapping[str, Any]:
    entry: Any = stored.get("integrations") or {}
    for key in ("huggingface", "model", "config"):
        entry = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("content"), Mapping):
        raise ValueError(
            "it stores no Hugging Face configuration, as checkpoints of a HuggingFaceModel do; "
            "build the model yourself and pass Teacher(model, checkpoint=...)"
        )
    return entry


def _transformers_class(transformers: Any, path: str) -> Any:
    """The class at a path within transformers: nothing outside of it is imported."""
    module, _, name = path.rpartition(".")
    parts = module.split(".")
    found = None
    if parts[:2] == ["transformers", "models"] and all(part.isidentifier() for part in parts):
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            found = None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ValueError(
            f"it was trained as a {path}, which is no model of transformers "
            f"{transformers.__version__}; build it yourself and pass Teacher(model, checkpoint=...)"
        )
    return found


def _config(model_class: Any, settings: Mapping[str, Any]) -> "PretrainedConfig":
    settings = dict(settings)
    if isinstance(settings.get("id2label"), Mapping):  # JSON made its numbers words
        settings["id2label"] = {int(key): value for key, value in settings["id2label"].items()}
    try:
        return model_class.config_class(**settings)
    except Exception as error:  # Whatever a made-up configuration leads to.
        raise ValueError(f"its configuration makes no {model_class.__name__} ({error})") from error
