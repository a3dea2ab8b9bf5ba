"""A student that takes what fits of its teacher's weights."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Copied(NamedTuple):
    """What :func:`composer_distill.copy_matching` did, by names of parameters and buffers.

    Attributes:
        copied: What the student has from its teacher now.
        unlike: What both have, in other shapes; or what the student has tied to another of its
            weights, which has another value from the teacher.
        missing: What the student alone has.
        unused: What the teacher alone has.
    """

    copied: tuple[str, ...]
    unlike: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]


def copy_matching(student: nn.Module, teacher: nn.Module) -> Copied:
    """Copy a teacher's weights into a student, in place, where name and shape are the same.

    The student's types and devices stay, and nothing is shared. What is not copied stays as it was,
    so look at what is returned: a student whose blocks are numbered otherwise takes the wrong ones.

    Args:
        student: Any module.
        teacher: Any module, named as the student is: both bare, or both in the same wrapper.

    Raises:
        TypeError: If either is no module.
        ValueError: If nothing fits, or what does is on the meta device.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3))
        >>> student = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3))
        >>> copy_matching(student, teacher).copied
        ('0.weight', '0.bias')
    """
    for name, module in (("student", student), ("teacher", teacher)):
        if not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}.")
    ours, theirs = _tensors(student), _tensors(teacher)
    both = [name for name in ours if name in theirs]
    copied = [name for name in both if ours[name].shape == theirs[name].shape]
    if not copied:
        raise ValueError(
            f"nothing of the teacher fits the student by name and shape: the student has "
            f"{_some(ours)}, the teacher {_some(theirs)}. Pass both bare, or both in the same "
            "wrapper, and name their modules alike."
        )
    for which, tensors in (("student", ours), ("teacher", theirs)):
        empty = [name for name in copied if tensors[name].is_meta]
        if empty:
            raise ValueError(
                f"{which} must hold its weights, but {len(empty)} are on the meta device, such as "
                f"{empty[0]}. Build it outside torch.device('meta') or init_empty_weights()."
            )
    filled: set[int] = set()
    with torch.no_grad():
        copied = [name for name in copied if _copy(ours[name], theirs[name], filled)]
    return Copied(
        tuple(copied),
        tuple(name for name in both if name not in copied),
        tuple(name for name in ours if name not in theirs),
        tuple(name for name in theirs if name not in ours),
    )


def _copy(mine: Tensor, other: Tensor, filled: set[int]) -> bool:
    """Copy, unless another name has filled the tensor; return whether it holds this value now."""
    if id(mine) in filled:
        return torch.equal(mine, other.to(mine))
    filled.add(id(mine))
    mine.copy_(other)
    return True


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {n: t for n, t in module.state_dict(keep_vars=True).items() if isinstance(t, Tensor)}


def _some(names: dict[str, Tensor]) -> str:
    return f"{', '.join(list(names)[:3]) or 'nothing'}" + (", ..." if len(names) > 3 else "")
