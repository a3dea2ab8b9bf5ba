"""Texts packed into one row: whether a student reads over their borders, which its teacher follows.

Without an ``attention_mask``, some models of transformers keep texts apart where ``position_ids``
begin anew, in a forward that makes no cache of keys and values; under flash attention, in a row
that is alone. Other models read a row as one text whatever is set.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def reads_over_borders(student: nn.Module, batch: Any, outputs: Any = None) -> bool:
    """Return whether a batch may hold packed texts that the student does not keep apart.

    Args:
        student: The student, in the mode in which it answered.
        batch: What it answered.
        outputs: Its answer, which may hold the cache that was made.

    Example:
        >>> reads_over_borders(nn.Linear(2, 2), {"position_ids": None})
        False
    """
    inputs = _inputs_of(batch)
    if not _may_be_packed(inputs):
        return False
    always = always_reads_over(student, inputs)
    return _makes_cache(student, inputs, outputs) if always is None else always


def always_reads_over(model: nn.Module, batch: Any) -> bool | None:
    """Return what is known of a model whatever it caches; None where a cache decides, or nothing.

    Models of transformers keep texts apart that make their masks by its ``create_causal_mask`` and
    are told ``position_ids``.

    Args:
        model: A student or a teacher.
        batch: What it is asked.
    """
    base = _pretrained_in(model)
    if base is None or not any(_files_of(base)):  # its code is not transformers' own
        return None
    told = "position_ids" in inspect.signature(base.forward).parameters
    files = (file for module in base.modules() for file in _files_of(module))
    keeps = told and any(hasattr(file, "create_causal_mask") for file in files)
    if keeps and str(base.config._attn_implementation).startswith("flash_attention"):
        read = _inputs_of(batch).get("input_ids")
        return len(read) > 1 if isinstance(read, Tensor) else None
    return None if keeps else True


def cannot_read(teacher: nn.Module, batch: Any, *, over: bool, is_told: bool) -> bool:
    """Return whether a teacher is known to read packed texts in the other way.

    Args:
        teacher: The teacher's model, in eval mode.
        batch: What it is asked.
        over: Whether it should read over borders.
        is_told: Whether it is told how, by its arguments; else it does as it is set.
    """
    inputs = _inputs_of(batch)
    if not _may_be_packed(inputs):
        return False
    reads = always_reads_over(teacher, inputs)
    if reads is None and not is_told and _pretrained_in(teacher) is not None:
        reads = _makes_cache(teacher, inputs, None)
    return reads is not None and reads is not over and holds_packed(batch)


def holds_packed(batch: Any) -> bool:
    """Return whether positions of a batch do not count on within a row; it waits for the device."""
    positions = _inputs_of(batch).get("position_ids")
    return isinstance(positions, Tensor) and bool((positions.diff(dim=-1) != 1).any())


def read_over_borders(model: nn.Module, inputs: dict[str, Any]) -> None:
    """Have a model of transformers read its inputs over borders: all of a row is attended to.

    Args:
        model: The model.
        inputs: Its inputs by name, to which a mask is added.
    """
    if _may_be_packed(inputs) and always_reads_over(model, inputs) is None:
        read = inputs.get("input_ids")
        read = inputs.get("inputs_embeds") if read is None else read
        if isinstance(read, Tensor):
            shape, device = read.shape[:2], read.device
            inputs["attention_mask"] = torch.ones(shape, dtype=torch.long, device=device)


def _may_be_packed(inputs: Mapping[str, Any]) -> bool:
    return inputs.get("position_ids") is not None and inputs.get("attention_mask") is None


def _inputs_of(batch: Any) -> Mapping[str, Any]:
    """Return the names of a batch, or of its first element, as :func:`call_model` reads it."""
    inputs = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    return inputs if isinstance(inputs, Mapping) else {}


def _pretrained_in(model: nn.Module) -> Any | None:
    """Return the outermost model of transformers in a model."""
    transformers: Any = sys.modules.get("transformers")
    kinds = () if transformers is None else transformers.PreTrainedModel
    return next((each for each in model.modules() if isinstance(each, kinds)), None)


def _files_of(module: nn.Module) -> Iterator[Any]:
    """Yield the files of transformers that define a module's class, however that is wrapped."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("transformers.models."):
            yield sys.modules[kind.__module__]


def _makes_cache(student: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> bool:
    """Return whether a student made a cache: as its answer shows, or else as it is told to."""
    if hasattr(outputs, "past_key_values"):
        return outputs.past_key_values is not None
    base = _pretrained_in(student)
    if isinstance(outputs, tuple) and base is not None and not base.config.use_return_dict:
        return any(hasattr(value, "get_seq_length") for value in outputs)
    configs = (getattr(module, "config", None) for module in student.modules())
    config = next((each for each in configs if hasattr(each, "use_cache")), None)
    caches = inputs.get("use_cache", getattr(config, "use_cache", False))
    return bool(caches) and not (student.training and _recomputes(student))


def _recomputes(student: nn.Module) -> bool:
    """Return whether activations are recomputed, for which transformers makes no cache."""
    return any(getattr(module, "gradient_checkpointing", False) for module in student.modules())
