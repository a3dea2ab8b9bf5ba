"""Teachers cut into shards over the ranks, as Composer cuts the student."""

import warnings
from functools import partial
from typing import Any, Literal

import torch
from composer.core import State
from composer.models import ComposerModel
from composer.utils import FSDP2Config, FSDPConfig
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp.wrap import CustomPolicy

Sharding = Literal["auto", "replicated", "sharded"]

SHARD_ABOVE = 1_000_000_000
"""With ``'auto'``, teachers of more parameters than this are sharded where the student is."""


def is_to_be_sharded(model: nn.Module, choice: Sharding, state: State, label: str) -> bool:
    """Decide whether a teacher is sharded or whole on every rank.

    Args:
        model: The teacher's model.
        choice: ``'replicated'``, ``'sharded'``, or ``'auto'``: sharded if the student is and the
            teacher has more than ``SHARD_ABOVE`` parameters.
        state: The Trainer's state at INIT.
        label: Which teacher it is, for errors.

    Raises:
        ValueError: If ``'sharded'`` is asked for and the student is not sharded, if the Trainer
            uses tensor parallelism, or if the teacher has no weights yet.
    """
    if state.tp_config is not None:
        raise ValueError(
            "Distillation does not support tensor parallelism: the student's logits would be cut "
            "along their classes. Use parallelism_config={'fsdp': ...} instead of 'tp'."
        )
    if any(tensor.is_meta for tensor in model.parameters()):
        raise ValueError(f"{label}: {_where_weights_are(model)}")
    if choice == "sharded" and state.fsdp_config is None:
        raise ValueError(
            "teacher_sharding='sharded' cuts teachers as the student is cut, but the Trainer has "
            "no FSDP. Give it parallelism_config={'fsdp': ...}, or use "
            "teacher_sharding='replicated'."
        )
    size = sum(parameter.numel() for parameter in model.parameters())
    large = choice == "auto" and state.fsdp_config is not None and size > SHARD_ABOVE
    return choice == "sharded" or large


def _where_weights_are(model: nn.Module) -> str:
    # accelerate marks the modules whose weights it brings for each forward
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return (
            "its weights were offloaded by accelerate, which alone moves them. Load the model "
            "without device_map, and pass Teacher(model, offload=True) to keep its weights in host "
            "memory between batches."
        )
    return (
        "its weights are on the meta device, so it knows nothing. Load them with "
        "Teacher(model, checkpoint=...)."
    )


def shard(model: nn.Module, state: State) -> None:
    """Cut a frozen model's weights over the ranks, in place.

    Every rank must hold the same whole weights before, and run the model for each batch after: its
    forward gathers them.

    Args:
        model: The model, whole, in host memory.
        state: The Trainer's state.
    """
    student = state.fsdp_config
    if isinstance(student, FSDPConfig):
        from composer.distributed import prepare_fsdp_module

        prepare_fsdp_module(model, None, student, state.precision, state.device, False)
        return
    from composer.distributed.fsdp2_utils import generate_composer_model_policy
    from composer.distributed.prepare_distributed import parallelize_model

    with warnings.catch_warnings():
        # said already when the student's own configuration was made
        warnings.filterwarnings("ignore", message="FSDP2 Config/APIs are experimental")
        config = FSDP2Config()  # a fresh one for each teacher
    if isinstance(student, FSDP2Config):
        config.device_mesh, config.mixed_precision = student.device_mesh, student.mixed_precision
    if isinstance(model, ComposerModel):
        policy = generate_composer_model_policy(model)
    else:
        policy = CustomPolicy(partial(_wraps, model))
    parallelize_model(model, config, precision=state.precision, fsdp_wrap_policy=policy)


def _wraps(whole: nn.Module, module: nn.Module) -> bool | dict[str, Any]:
    """Return whether a module of a plain teacher is a unit of sharding: the whole always is.

    Composer's own default for plain modules would leave out the whole.
    """
    wraps = getattr(whole, "fsdp_wrap_fn", None)
    return module is whole or (wraps(module) if callable(wraps) else False)  # pyright: ignore[reportReturnType]


def reshard(model: nn.Module) -> None:
    """Free what a forward without gradients gathered: no backward will do it."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that lies on this rank."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()
