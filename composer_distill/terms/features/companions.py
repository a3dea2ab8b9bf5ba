"""Modules that train beside the student and belong to neither it nor its teachers: projectors."""

import copy
import hashlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from composer.utils import dist
from torch import Tensor, nn

Projector = Literal["linear", "conv1x1", "mlp"] | nn.Module
"""A kind of projector, or a module from the student's features to the shape of the teacher's."""

KINDS = ("linear", "conv1x1", "mlp")


def check_projector(projector: Any) -> Any:
    """Return a projector argument, or say what is wrong with it."""
    if projector is None or isinstance(projector, nn.Module) or projector in KINDS:
        return projector
    raise ValueError(
        f"projector must be one of {', '.join(map(repr, KINDS))}, a module or None, got "
        f"{projector!r}. 'linear' maps the last axis, 'conv1x1' axis 1."
    )


def build_projector(projector: Projector, student: Any, teacher: Any, key: str) -> nn.Module:
    """Return a new module from the student's features to the teacher's width.

    Its first values are drawn from a generator of their own, the same on every rank and in every
    run: no stream of the student moves.

    Args:
        projector: A kind, or a module, of which a copy is made.
        student: The student's features.
        teacher: The teacher's features.
        key: Where it belongs; unlike ones get unlike values.

    Raises:
        TypeError: If features are several tensors, which no projector takes.
        ValueError: If the features have not the axes that the kind maps.
    """
    if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
        raise TypeError(
            f"feature term {key.partition('/')[0]!r}: a projector maps one tensor, and the layer "
            "gave several. Name queries, keys and values as terms of their own."
        )
    if isinstance(projector, nn.Module):
        module = copy.deepcopy(projector)
    else:
        with torch.random.fork_rng(devices=[]):
            seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little")
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed devices too
            module = _make(projector, student, teacher)
    dtype = torch.promote_types(student.dtype, torch.float32)
    return module.to(device=student.device, dtype=dtype).requires_grad_().train()


def _make(kind: str, student: Tensor, teacher: Tensor) -> nn.Module:
    if kind == "conv1x1":
        convolutions = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
        if student.ndim != teacher.ndim or student.ndim not in convolutions:
            raise ValueError(
                "projector='conv1x1' maps axis 1 of features (samples, channels, *space), got "
                f"{tuple(student.shape)} and {tuple(teacher.shape)}. Use projector='linear' where "
                "the width comes last."
            )
        return convolutions[student.ndim](student.shape[1], teacher.shape[1], 1)
    ours, theirs = student.shape[-1], teacher.shape[-1]
    if kind == "linear":
        return nn.Linear(ours, theirs)
    return nn.Sequential(nn.Linear(ours, theirs), nn.GELU(), nn.Linear(theirs, theirs))


class Companions:
    """The modules that train beside the student, by their keys.

    They are made when their features are first seen, so that no batch has to be run to find
    shapes. What a checkpoint holds of one waits until then.

    Attributes:
        modules: Those that exist.
        used: The keys of those that took part in this batch.
    """

    def __init__(self) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.used: dict[str, None] = {}
        self.saved: dict[str, dict[str, Any]] = {}

    def forget(self) -> None:
        """Forget all of a run that is over: the next one begins anew."""
        self.modules, self.used, self.saved = {}, {}, {}

    def take(self, key: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return the module of that key for use in this batch, made or restored the first time."""
        self.used[key] = None
        if key not in self.modules:
            module = make()
            if key in self.saved:
                module.load_state_dict(self.saved[key]["module"])
            for tensor in (*module.parameters(), *module.buffers()):
                if dist.get_world_size() > 1:
                    dist.broadcast(tensor.detach(), src=0)
            self.modules[key] = module
        return self.modules[key]
