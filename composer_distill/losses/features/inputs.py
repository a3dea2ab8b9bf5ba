"""From features of any layout to what a loss computes with: checked, cast, and without padding."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.precision import compute_dtype

_POOLS = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def clean(student: Any, teacher: Any, mask: Any = None) -> tuple[Tensor, Tensor]:
    """Return both in the type that is computed in, zero where masked; the teacher's detached.

    Args:
        student: The student's features.
        teacher: The teacher's, of as many samples.
        mask: True where a position counts, None where all do.

    Shape:
        - student: ``(*P, ...)``; teacher: ``(*P, ...)``; mask: ``(*P)``, their first axes.

    Raises:
        TypeError: If features are no floating-point tensors, or the mask is not boolean.
        ValueError: If numbers of samples, devices or the mask's shape do not fit.
    """
    check_features("student", student)
    check_features("teacher", teacher)
    if student.shape[0] != teacher.shape[0] or student.device != teacher.device:
        raise ValueError(
            "student and teacher features must be of the same samples and on one device, got "
            f"{tuple(student.shape)} on {student.device} and {tuple(teacher.shape)} on "
            f"{teacher.device}. Take both from one batch."
        )
    dtype = compute_dtype(student, teacher)
    s, t = student.to(dtype), teacher.detach().to(dtype)
    if mask is None:
        return s, t
    check_mask(mask)
    for name, features in (("student", s), ("teacher", t)):
        if features.shape[: mask.ndim] != mask.shape:
            raise ValueError(
                f"mask must have the first axes of the {name}'s features, got {tuple(mask.shape)} "
                f"for features of shape {tuple(features.shape)}. Give one value a position, or one "
                "a sample."
            )
    return tuple(torch.where(spread(mask, x), x, 0.0) for x in (s, t))  # pyright: ignore[reportReturnType]


def check_features(name: str, value: Any) -> None:
    """Raise TypeError or ValueError unless ``value`` are features of samples."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        came = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} must be a floating-point tensor of features, got {came}. "
            "Take the features out of the layer's output first."
        )
    if value.ndim == 0:
        raise ValueError(
            f"{name} features must have an axis of samples, got a scalar. Do not reduce them."
        )


def check_mask(mask: Any) -> None:
    """Raise TypeError unless ``mask`` is a boolean tensor."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = f"a tensor of {mask.dtype}" if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask must be a boolean tensor, true where a position counts, got {came}. "
            "Convert it with mask.bool()."
        )


def check_alike(student: Tensor, teacher: Tensor) -> None:
    """Raise ValueError unless student and teacher have one shape."""
    if student.shape == teacher.shape:
        return
    if student.shape[:-1] == teacher.shape[:-1]:
        remedy = "Only their widths differ: give the term projector='linear'."
    elif student.ndim == teacher.ndim > 3 and student.shape[2:] == teacher.shape[2:]:
        remedy = "Only their channels differ: give the term projector='conv1x1'."
    else:
        remedy = "A projector maps widths, not positions: choose layers of the same positions."
    raise ValueError(
        f"student and teacher features must have one shape, got {tuple(student.shape)} and "
        f"{tuple(teacher.shape)}. {remedy}"
    )


def spread(mask: Tensor, like: Tensor) -> Tensor:
    """Return the mask with axes of length 1 behind its own, so that it fits ``like``."""
    return mask.reshape(*mask.shape, *(1,) * (like.ndim - mask.ndim))


def unit(vectors: Tensor, dim: int = -1, *, epsilon: float = 0.0) -> Tensor:
    """Return vectors of length 1; one of zeros stays so, and its gradient finite.

    Args:
        vectors: Any, at ``dim``.
        dim: Their axis.
        epsilon: Added to the square of a length, so that no gradient exceeds the inverse of its
            root; those that are hardly longer than that root come out shorter.
    """
    # By its largest entry first: the square of a large or small number must not leave its range
    largest = vectors.detach().abs().amax(dim, keepdim=True) if vectors.numel() else vectors
    scale = largest.clamp(min=1.0) if epsilon else torch.where(largest > 0.0, largest, 1.0)
    scaled = vectors / scale
    squares = scaled.square().sum(dim, keepdim=True)
    lengths = squares + epsilon / scale.square() if epsilon else squares
    return scaled * torch.where(squares > 0.0, lengths, 1.0).rsqrt()


def mean_of_kept(values: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean over the entries at kept positions; 0 with a gradient path over none.

    Args:
        values: One value an entry, zero where masked.
        mask: True where a position counts, in the shape of the first axes of ``values``.
    """
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    entries = values[(0,) * mask.ndim].numel() if mask.numel() else 1
    return values.sum() / (mask.sum() * entries).clamp(min=1)


def as_samples(student: Any, teacher: Any, mask: Any) -> tuple[Tensor, Tensor]:
    """Return both as one row a sample, padding as zeros and samples without a position left out.

    Shape:
        - student: ``(B, ...)``; teacher: ``(B, ...)``; mask: ``(B)`` or more of the first axes.
        - result: ``(K, D_s)`` and ``(K, D_t)``.
    """
    s, t = (x.flatten(1) if x.ndim > 1 else x.unsqueeze(1) for x in clean(student, teacher, mask))
    if mask is None:
        return s, t
    kept = mask.flatten(1).any(1) if mask.ndim > 1 else mask
    return s[kept], t[kept]


def pooled(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return two stacks of maps in one resolution: along each axis the coarser one's.

    Shape:
        - student: ``(B, C_s, *S)``; teacher: ``(B, C_t, *S')``, with one to three axes of space.
        - result: ``(B, C_s, *M)`` and ``(B, C_t, *M)``.

    Raises:
        ValueError: If they have unlike numbers of axes of space, or more than three.
    """
    ours, theirs = student.shape[2:], teacher.shape[2:]
    if ours == theirs:
        return student, teacher
    if len(ours) != len(theirs) or not 1 <= len(ours) <= 3:
        raise ValueError(
            "student and teacher maps must have the same one to three axes of space, got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}. Choose layers of one kind."
        )
    pool, size = _POOLS[len(ours) - 1], tuple(map(min, zip(ours, theirs, strict=True)))
    return (
        student if ours == size else pool(student, size),  # pyright: ignore[reportArgumentType]
        teacher if theirs == size else pool(teacher, size),  # pyright: ignore[reportArgumentType]
    )
