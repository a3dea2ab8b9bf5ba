"""What a loss asks of its arguments, and what it says where they are wrong."""

import math
import numbers
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

Reduction = Literal["mean", "batchmean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)


def check_number(name: str, value: Any, *, above: float = -math.inf, remedy: str) -> float:
    """Return ``value`` as a float, or say what is wrong with it.

    Args:
        name: What the caller calls the argument.
        value: What was given.
        above: The value must be greater than this.
        remedy: One sentence that says what to give instead.

    Raises:
        TypeError: If ``value`` is no real number.
        ValueError: If ``value`` is not finite, or not greater than ``above``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}. {remedy}")
    number = float(value)
    if not (math.isfinite(number) and number > above):
        needed = "finite" if above == -math.inf else f"finite and greater than {above:g}"
        raise ValueError(f"{name} must be {needed}, got {value!r}. {remedy}")
    return number


def check_share(name: str, value: Any, *, ends: bool = False, remedy: str) -> float:
    """Return a number between 0 and 1, or with ``ends`` one of the two, or say what is wrong."""
    number = check_number(name, value, remedy=remedy)
    if not (0.0 <= number <= 1.0 if ends else 0.0 < number < 1.0):
        needed = "from 0 to 1" if ends else "between 0 and 1"
        raise ValueError(f"{name} must be {needed}, got {value!r}. {remedy}")
    return number


def check_temperature(value: Any, name: str = "temperature") -> float:
    """Return a temperature as a float; raise where it is none, or a schedule not yet resolved."""
    if callable(value):
        raise TypeError(
            f"{name} is the schedule {value!r}, which has no value yet. "
            "Call loss.resolve(state) before the loss, once a batch."
        )
    if type(value) is float and 0.0 < value < math.inf:  # asked at each call
        return value
    remedy = "Usual values are 2 to 8 for vision and 1 for language models."
    return check_number(name, value, above=0.0, remedy=remedy)


def check_dim(dim: Any) -> int:
    """Return ``dim``; raise TypeError where it is no integer."""
    if isinstance(dim, bool) or not isinstance(dim, int):
        raise TypeError(f"dim must be an integer, got {dim!r}. Use -1 where classes come last.")
    return dim


def check_reduction(reduction: Any) -> Reduction:
    """Return ``reduction``; raise ValueError where it is none of the four."""
    if reduction not in _REDUCTIONS:
        known = ", ".join(map(repr, _REDUCTIONS))
        raise ValueError(
            f"reduction must be one of {known}, got {reduction!r}. "
            "Use 'mean' for the mean over positions."
        )
    return cast(Reduction, reduction)


def _check_logits(name: str, logits: Any, dim: int) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"{name} must be a tensor of logits, got {type(logits).__name__}. "
            f"Take the logits out of the model's output first."
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"{name} must hold floating-point logits, got {logits.dtype}. "
            "Pass logits, not class indices."
        )
    if not -logits.ndim <= dim < logits.ndim:
        raise ValueError(
            f"dim={dim} does not exist in the {name} logits of shape {tuple(logits.shape)}. "
            "Set dim to the class axis."
        )
    if logits.shape[dim] == 0:
        raise ValueError(
            f"{name} logits of shape {tuple(logits.shape)} have no class on axis dim={dim}. "
            "Set dim to the class axis."
        )


def check_inputs(student: Any, teacher: Any, mask: Any, dim: int, fewest: int = 2) -> None:
    """Raise unless the arguments of a loss fit each other.

    Args:
        student: The student's logits.
        teacher: The teacher's logits, of the same shape and on the same device.
        mask: ``None``, or true where a position counts, with the shape of the logits without
            their class axis.
        dim: The class axis.
        fewest: How many classes the loss needs at least: a softmax over a single one is always 1.

    Raises:
        TypeError: If the logits are not floating-point, or the mask is not boolean.
        ValueError: If shapes or devices differ, ``dim`` is no axis of the logits, or there are too
            few classes on it.
    """
    _check_logits("student", student, dim)
    if student.shape[dim] < fewest:
        raise ValueError(
            f"student logits of shape {tuple(student.shape)} have one class on axis dim={dim}, "
            "over which a softmax is 1 whatever they are: the loss would be constant. Use "
            "BernoulliKL for one logit of a binary answer or for labels that do not exclude each "
            "other, or set dim to the class axis."
        )
    alike = isinstance(teacher, Tensor) and teacher.dtype == student.dtype
    if not alike or teacher.shape != student.shape or teacher.device != student.device:
        _check_pair(student, teacher, dim)
    check_mask(mask, student, dim)


def _check_pair(student: Tensor, teacher: Any, dim: int) -> None:
    _check_logits("teacher", teacher, dim)
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher logits must have one shape, got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}. Map both to the same classes and positions first."
        )
    if student.device != teacher.device:
        raise ValueError(
            f"student and teacher logits must be on one device, got {student.device} and "
            f"{teacher.device}. Move the teacher to the student's device."
        )


def check_mask(mask: Any, student: Tensor, dim: int) -> None:
    """Raise unless ``mask`` is None or boolean, with one entry for each position."""
    if mask is None:
        return
    check_per_position("mask", mask, student, dim)
    if mask.dtype != torch.bool:
        raise TypeError(
            f"mask must be boolean, true where a position counts, got {mask.dtype}. "
            "Convert it with mask.bool()."
        )


def check_per_position(name: str, value: Any, student: Tensor, dim: int) -> None:
    """Raise unless ``value`` is a tensor with one entry for each position of ``student``."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {value!r}. Give one value a position.")
    needed = position_shape(student, dim)
    if value.shape != needed:
        raise ValueError(
            f"{name} must have the shape {tuple(needed)}, that of the logits without their class "
            f"axis, got {tuple(value.shape)}. Reshape it, or check dim={dim}."
        )
    if value.device != student.device:
        raise ValueError(
            f"{name} must be on the logits' device {student.device}, got {value.device}. "
            f"Move it with {name}.to(student.device)."
        )


def position_shape(logits: Tensor, dim: int) -> torch.Size:
    """Return the shape of ``logits`` without its class axis."""
    axis = dim % logits.ndim
    return logits.shape[:axis] + logits.shape[axis + 1 :]
