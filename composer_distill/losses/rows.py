"""From logits of any layout to rows of classes, and from one value a row to a loss.

Every loss goes through the same three steps, written here once: check what came, lay it out as
``(rows, classes)`` with the masked rows left out, and reduce one value a row.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor

from composer_distill.losses.precision import compute_dtype

Reduction = Literal["mean", "batchmean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)

# A class at minus infinity is computed as one at this logit: its probability is exactly zero in
# every floating-point type that is computed in, and 0 * log(0) is 0 instead of NaN.
FLOOR = -1e30


class Rows(NamedTuple):
    """Student and teacher as ``(N, C)`` in the type that is computed in.

    ``keep`` is ``None`` where the masked rows are already gone; otherwise it tells them apart, and
    they hold zeros. ``labels`` has one class a row where the loss needs labels.
    """

    student: Tensor
    teacher: Tensor
    keep: Tensor | None
    labels: Tensor | None


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


def check_inputs(student: Any, teacher: Any, mask: Any, dim: int) -> None:
    """Raise unless the arguments of a loss fit each other.

    Args:
        student: The student's logits.
        teacher: The teacher's logits, of the same shape and on the same device.
        mask: ``None``, or true where a position counts, with the shape of the logits without
            their class axis.
        dim: The class axis.

    Raises:
        TypeError: If the logits are not floating-point, or the mask is not boolean.
        ValueError: If shapes or devices differ, or ``dim`` is no axis of the logits.
    """
    _check_logits("student", student, dim)
    alike = isinstance(teacher, Tensor) and teacher.dtype == student.dtype
    if not alike or teacher.shape != student.shape or teacher.device != student.device:
        _check_pair(student, teacher, dim)
    if mask is not None:
        check_per_position("mask", mask, student, dim)
        if mask.dtype != torch.bool:
            raise TypeError(
                f"mask must be boolean, true where a position counts, got {mask.dtype}. "
                "Convert it with mask.bool()."
            )


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


def as_rows(logits: Tensor, dim: int) -> Tensor:
    """Return ``logits`` as ``(rows, classes)``: a view where the layout allows one."""
    if logits.ndim == 2 and dim in (-1, 1):
        return logits
    return logits.movedim(dim, -1).reshape(-1, logits.shape[dim])


def select_rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    dim: int,
    *,
    labels: Tensor | None = None,
    whole: bool = False,
) -> Rows:
    """Lay checked logits out as rows of classes, without the masked ones.

    Args:
        student: The student's logits.
        teacher: The teacher's logits. Their gradient stops here.
        mask: True where a position counts; ``None`` where all do.
        dim: The class axis.
        labels: One class a position, or ``None``.
        whole: Keep the masked rows as zeros, so that no shape depends on data. ``torch.compile``
            needs it, and so does a result with one entry for each position.
    """
    dtype = compute_dtype(student, teacher)
    s, t = as_rows(student, dim), as_rows(teacher.detach(), dim)
    y = None if labels is None else labels.reshape(-1).long()
    if mask is None:
        return Rows(s.to(dtype), t.to(dtype), None, y)
    keep = mask.reshape(-1)
    if not (whole or torch.compiler.is_compiling()):
        y = None if y is None else y[keep]
        return Rows(s[keep].to(dtype), t[keep].to(dtype), None, y)
    s, t = (torch.where(keep.unsqueeze(1), x.to(dtype), 0.0) for x in (s, t))
    y = None if y is None else torch.where(keep, y, 0)
    return Rows(s, t, keep, y)


def reduce_rows(
    values: Tensor, keep: Tensor | None, reduction: Reduction, like: Tensor, dim: int
) -> Tensor:
    """Reduce one value a row.

    Args:
        values: One value a row, ``(N,)``.
        keep: True where a row counts; ``None`` where all do.
        reduction: ``'mean'`` over the rows that count, ``'sum'``, ``'batchmean'`` (the sum divided
            by the length of the first axis, as in torch), or ``'none'``: a value for each position.
        like: The student's logits, for their shape.
        dim: The class axis.

    Returns:
        A scalar, or for ``'none'`` the shape of ``like`` without its class axis. Over no rows at
        all the scalar is 0, and it still has a gradient path.
    """
    if keep is not None:
        values = torch.where(keep, values, 0.0)
    if reduction == "none":
        return values.reshape(position_shape(like, dim))
    total = values.sum()
    if reduction == "sum":
        return total
    if reduction == "batchmean":
        return total / max(like.shape[0], 1)
    if keep is None:
        return total / max(values.shape[0], 1)
    return total / keep.sum().clamp(min=1)


def restore_layout(terms: Tensor, keep: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """Return ``terms`` of shape ``(N, C)`` in the layout of ``like``, zero where masked."""
    if keep is not None:
        terms = torch.where(keep.unsqueeze(1), terms, 0.0)
    moved = (*position_shape(like, dim), like.shape[dim])
    return terms.reshape(moved).movedim(-1, dim)


def sum_of_terms(
    terms: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    dim: int,
    reduction: Reduction,
) -> Tensor:
    """Reduce a loss that is a sum of terms over the classes, in plain differentiable operations.

    Args:
        terms: From rows of student and teacher logits ``(N, C)`` to the terms ``(N, C)``.
        student: The student's logits, already checked.
        teacher: The teacher's logits, already checked.
        mask: True where a position counts.
        dim: The class axis.
        reduction: As in :func:`reduce_rows`, but ``'none'`` returns the terms themselves, in the
            shape of the inputs.
    """
    rows = select_rows(student, teacher, mask, dim, whole=reduction == "none")
    values = terms(rows.student, rows.teacher)
    if reduction == "none":
        return restore_layout(values, rows.keep, student, dim)
    return reduce_rows(values.sum(-1), rows.keep, reduction, student, dim)
