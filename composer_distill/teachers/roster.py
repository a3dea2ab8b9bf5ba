"""The teachers of one run: read from whatever the user passed, and kept apart from the student."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist
from torch import nn

from composer_distill.teachers.adapters import AdapterFree, AdapterFreeTeacher
from composer_distill.teachers.cached import CachedTeacher
from composer_distill.teachers.ema import EMATeacher, MovingAverage
from composer_distill.teachers.found import CachedAnswers
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.sharding import local
from composer_distill.teachers.source import Source
from composer_distill.teachers.teacher import Teacher
from composer_distill.weights.errors import without_secrets

AnyTeacher = Teacher | CachedTeacher
"""What stands in a run's list of teachers."""


def to_teachers(teachers: Any) -> tuple[AnyTeacher, ...]:
    """Read the ``teachers`` argument.

    Args:
        teachers: A model or ``Teacher``; a sequence of these; or a mapping of checkpoint to model,
            whose weights are loaded into the model.

    Raises:
        TypeError: If an entry is no model.
        ValueError: If there are none, or one model stands twice.
    """
    if isinstance(teachers, Mapping):
        entries = [_from_checkpoint(source, model) for source, model in teachers.items()]
    elif isinstance(teachers, nn.ModuleDict):
        entries = [_to_teacher(entry, index) for index, entry in enumerate(teachers.values())]
    elif isinstance(teachers, (Teacher, CachedTeacher, nn.Module)) and not isinstance(
        teachers, nn.ModuleList
    ):
        entries = [_to_teacher(teachers, 0)]
    elif isinstance(teachers, Iterable) and not isinstance(teachers, (str, bytes)):
        entries = [_to_teacher(entry, index) for index, entry in enumerate(teachers)]
    else:
        raise TypeError(
            "teachers must be a model, a sequence of models or a mapping of checkpoint to model, "
            f"got {type(teachers).__name__}. To load a checkpoint pass {{path: model}}."
        )
    if not entries:
        raise ValueError("teachers must hold at least one model, got none. Pass a trained model.")
    _check_distinct(entries)
    return tuple(entries)


def labels_of(teachers: Sequence[AnyTeacher]) -> tuple[str, ...]:
    """Return what errors and logs call each teacher, such as ``'teacher 1 (ResNet)'``."""
    return tuple(
        f"teacher {index} ({teacher.name or type(teacher.model).__name__})"
        for index, teacher in enumerate(teachers)
    )


def at_work(teachers: Sequence[AnyTeacher]) -> tuple[Source, ...]:
    """Return what answers microbatches in a Trainer for each teacher."""
    pairs = zip(teachers, labels_of(teachers), strict=True)
    return tuple(_at_work(teacher, label) for teacher, label in pairs)


def _at_work(teacher: AnyTeacher, label: str) -> Source:
    if isinstance(teacher, CachedTeacher):
        return CachedAnswers(teacher, label)
    if isinstance(teacher, AdapterFreeTeacher):
        return AdapterFree(teacher, label)
    if isinstance(teacher, EMATeacher):
        return MovingAverage(teacher, label)
    return LiveTeacher(teacher, label)


def made_of_student(teachers: Sequence[AnyTeacher]) -> tuple[int, ...]:
    """Return the numbers of those that have no knowledge but the student's."""
    own = (AdapterFreeTeacher, EMATeacher)
    return tuple(index for index, teacher in enumerate(teachers) if isinstance(teacher, own))


def check_apart(
    teachers: Sequence[AnyTeacher], student: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> None:
    """Refuse teachers that share tensors with the student or that an optimizer would train.

    Raises:
        ValueError: Naming the teacher and the first tensor that it shares.
    """
    student_memory = {_memory(tensor) for _, tensor in _tensors(student)} - {None}
    trained = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for teacher, label in zip(teachers, labels_of(teachers), strict=True):
        for name, tensor in _tensors(teacher.model):
            if _memory(tensor) in student_memory:
                raise ValueError(
                    f"{label}: its '{name}' shares memory with the student, so freezing the one "
                    "would stop the other. Pass a copy: copy.deepcopy(teacher)."
                )
            if id(tensor) in trained:
                raise ValueError(
                    f"{label}: its '{name}' is in the optimizer, which would train it. "
                    "Build the optimizer from the student's parameters alone."
                )


def check_followed_once(instances: Sequence[Sequence[AnyTeacher]]) -> None:
    """Refuse a teacher that is made of the student in two instances: each would move its weights.

    Args:
        instances: The teachers of each ``Distillation`` of a Trainer.

    Raises:
        ValueError: Naming the teacher.
    """
    seen: set[int] = set()
    for teachers in instances:
        for teacher, label in zip(teachers, labels_of(teachers), strict=True):
            if isinstance(teacher, EMATeacher) and id(teacher) in seen:
                raise ValueError(
                    f"{label}: one {type(teacher).__name__} stands in two instances of "
                    "Distillation, and each would move its weights. Build one for each."
                )
            seen.add(id(teacher))


def check_alike_on_ranks(identities: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse teachers that are not the same on every rank; every rank must ask.

    Args:
        identities: Who this rank's teachers are.
        labels: What errors call them.

    Raises:
        ValueError: On every rank, naming the first teacher that differs and who holds what.
    """
    if dist.get_world_size() == 1:
        return
    everywhere = dist.all_gather_object(list(identities))
    for label, held in zip(labels, zip_longest(*everywhere, fillvalue="none"), strict=False):
        ranks: dict[str, list[str]] = {}
        for rank, identity in enumerate(held):
            ranks.setdefault(identity, []).append(str(rank))
        if len(ranks) > 1:
            found = "; ".join(f"rank {', '.join(who)}: {what}" for what, who in ranks.items())
            raise ValueError(
                f"{label}: the ranks hold different teachers ({found}). Load one checkpoint on "
                "every rank, or make random weights from one seed."
            )


def check_same(saved: Sequence[str], present: Sequence[str]) -> None:
    """Compare the teachers of a resumed run with those of the run that wrote the checkpoint.

    Raises:
        ValueError: Naming the first teacher that differs.
    """
    if list(saved) == list(present):
        return
    pairs = zip_longest(saved, present, fillvalue="none")
    index, (was, now) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
    raise ValueError(
        f"teacher {index} differs from the one in the run that wrote the checkpoint: it was {was}, "
        f"now it is {now}. Pass the same teachers in the same order, or verify_teachers=False to "
        "go on with others."
    )


def _from_checkpoint(source: Any, model: Any) -> Teacher:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"teachers[{without_secrets(source)!r}] must be the model that the weights go into, "
            f"got {type(model).__name__}. Pass {{path: model}}; for options, a list of "
            "Teacher(model, checkpoint=path, ...)."
        )
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"teachers is a mapping, so its keys must be paths or URIs of checkpoints, got "
            f"{source!r}. For models without checkpoints pass a list."
        )
    return Teacher(model, checkpoint=source)


def _to_teacher(entry: Any, index: int) -> AnyTeacher:
    if isinstance(entry, (Teacher, CachedTeacher)):
        return entry
    if isinstance(entry, nn.Module):
        return Teacher(entry)
    raise TypeError(
        f"teachers[{index}] must be a model or a Teacher, got {type(entry).__name__}. "
        "To load a checkpoint pass {path: model}."
    )


def _check_distinct(teachers: Sequence[AnyTeacher]) -> None:
    first: dict[int, int] = {}
    for index, teacher in enumerate(teachers):
        earlier = first.setdefault(id(teacher.model), index)
        if earlier != index:
            raise ValueError(
                f"teachers {earlier} and {index} ({type(teacher.model).__name__}) are one and the "
                "same model. Build a model for each, or give one Teacher a larger weight."
            )


def _tensors(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _memory(tensor: torch.Tensor) -> tuple[torch.device, int] | None:
    """Return where a tensor's storage lies, None for one that has no memory of its own."""
    tensor = local(tensor)
    while hasattr(tensor, "__tensor_flatten__"):  # quantised weights, around plain ones
        inner: Any = tensor
        tensor = getattr(inner, inner.__tensor_flatten__()[0][0])
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return None
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse, nested: several memories, or none to see
        return tensor.device, id(tensor)
