"""Where Triton can be had on a GPU: a divergence in one kernel instead of operations on chunks."""

import functools
import logging
import os
import types
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_distill.losses.softened import Divergence, Formula

_log = logging.getLogger(__name__)

_BLOCK = 4096
# Triton's own interpreter runs the kernel on a CPU, slowly: for tests.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


class Measured(NamedTuple):
    """What the kernel found of each row.

    Attributes:
        values: The divergence, ``(N,)``, float32.
        gradient: With respect to the student's logits, times the factor; None where not wanted.
        scale: ``(N,)``: by which a float16 gradient's rows are still to be multiplied, else None.
        told: ``(3, N)``: the forward KL and the entropies of student and teacher, or None.
        first: ``(2, N)``: the class that student and teacher put first, or None.
    """

    values: Tensor
    gradient: Tensor | None
    scale: Tensor | None
    told: Tensor | None
    first: Tensor | None


@functools.cache
def _triton() -> types.ModuleType | None:
    try:
        from composer_distill.losses import triton_rows
    except ImportError:
        return None
    return triton_rows


def can_run(formula: Formula, student: Tensor, teacher: Tensor) -> bool:
    """Tell whether the kernel knows the divergence, and these logits lie where it runs."""
    here = student.is_cuda or (_INTERPRETED and student.is_cpu)
    known = formula.kernel is not None and {student.dtype, teacher.dtype} <= set(_TYPES)
    return here and known and student.numel() > 0 and _triton() is not None


def run(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    divergence: Divergence,
    *,
    wanted: bool = False,
    tells: bool = False,
    overwrite: bool = False,
) -> Measured:
    """Run the kernel on rows of logits; see :func:`composer_distill.losses.kernel.chunked`.

    Args:
        student: The student's logits, ``(N, C)``.
        teacher: The teacher's logits, ``(N, C)``.
        index: The rows that count; None for all.
        divergence: One for whose formula :func:`can_run`; its factor is in the gradient alone.
        wanted: Whether a gradient is.
        tells: Whether the sums of telemetry are wanted.
        overwrite: Whether the memory of the student's logits may become the gradient's.
    """
    kernels: Any = _triton()
    formula, temperature, factor = divergence
    student, teacher = student.detach(), teacher.detach()
    n, classes = (student if index is None else index).shape[0], student.shape[1]
    values = student.new_empty(n, dtype=torch.float32)
    reuse = overwrite and index is None and student.is_contiguous()
    gradient = student if reuse else student.new_empty(n if wanted else 0, classes)
    scaled = wanted and student.dtype == torch.float16
    scale, told = torch.empty_like(values), values.new_empty(3, n if tells else 0)
    first = values.new_empty(2, n if tells else 0, dtype=torch.int64)
    alpha, beta = (*formula.arguments, 0.0, 0.0)[:2]
    with torch.cuda.device(student.device) if student.is_cuda else nullcontext():
        kernels.rows[(n,)](
            *(student, teacher, values if index is None else index),
            *(values, gradient, scale, told, first, n, classes),
            *(*student.stride(), *teacher.stride(), classes),
            *(1.0 / temperature, factor / temperature, alpha, beta),
            indexed=index is not None,
            wanted=wanted,
            scaled=scaled,
            tells=tells,
            **_constants(kernels, formula, classes),
        )
    return Measured(
        values,
        gradient if wanted else None,
        scale if scaled else None,
        *((told, first) if tells else (None, None)),
    )


def _constants(kernels: Any, formula: Formula, classes: int) -> dict[str, int]:
    """Return for which divergence and which size of rows the kernel is compiled."""
    block = min(_BLOCK, 1 << (classes - 1).bit_length())
    kind = getattr(kernels, formula.kernel or "").value
    return {"kind": kind, "block": block, "num_warps": max(4, min(16, block // 256))}


def agrees(reference: Callable[..., Any], formula: Formula, student: Tensor, like: Tensor) -> bool:
    """Tell whether the kernel says what the chunked path says; asked once for each kind of input.

    Args:
        reference: :func:`composer_distill.losses.kernel.chunked`.
        formula: Which divergence.
        student: The student's logits, of which type, classes and device matter.
        like: The teacher's.
    """
    key = (formula.kernel, student.dtype, like.dtype, student.shape[1], student.device)
    if key not in _verdicts:
        try:
            _verdicts[key] = _compare(reference, formula, student, like)
        except Exception as error:  # Whatever a compiler may say, the chunked path needs none
            _verdicts[key] = f"it did not run ({error})"
        if _verdicts[key]:
            _log.warning(
                "the Triton kernel of %s is not used on %s logits with %d classes: %s. The chunked "
                "path is used instead, which is right and slower. Please report this.",
                *(formula.kernel, student.dtype, student.shape[1], _verdicts[key]),
            )
    return not _verdicts[key]


_verdicts: dict[tuple[Any, ...], str] = {}
_CHECKED_ROWS = 3


def _compare(
    reference: Callable[..., Any], formula: Formula, student: Tensor, teacher: Tensor
) -> str:
    """Return what differs on a few rows of its own, or an empty string."""
    shape = (_CHECKED_ROWS, student.shape[1])
    at = torch.arange(shape[0] * shape[1], device=student.device, dtype=torch.float64)
    own, other = (
        (4.0 * torch.sin(at * step)).reshape(shape).to(kind)
        for step, kind in ((0.37, student.dtype), (0.41, teacher.dtype))
    )
    exact = reference(own.double(), other.double(), None, Divergence(formula, 2.0), True)
    found = run(own, other, None, Divergence(formula, 2.0), wanted=True)
    if found.gradient is None:
        return "it gave no gradient"
    scale = 1.0 if found.scale is None else found.scale.unsqueeze(1)
    size = exact.gradient.abs().max().item() + torch.finfo(torch.float32).tiny
    off = ((found.gradient * scale).double() - exact.gradient).abs().max().item() / size
    value = abs(found.values.sum().item() - exact.total.item()) / (1.0 + abs(exact.total.item()))
    if value < 1e-4 and off < 1e-4 + 2 * torch.finfo(student.dtype).eps:
        return ""
    return f"its value is off by {value:.1e} and its gradient by {off:.1e}"


class _Told(NamedTuple):
    """What the kernel told of some logits, while these live."""

    tensors: tuple[weakref.ref[Tensor], weakref.ref[Tensor]]
    key: tuple[Any, ...]
    told: Tensor
    first: Tensor


_last: _Told | None = None


def keep(student: Tensor, teacher: Tensor, found: Measured) -> None:
    """Keep what was found beside a loss for telemetry, which comes with the same logits."""
    global _last
    if found.told is not None and found.first is not None:
        tensors = (weakref.ref(student), weakref.ref(teacher))
        _last = _Told(tensors, _key(student, teacher), found.told, found.first)


def told(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what the kernel told of these very rows the last time that it told, or None."""
    if _last is None or any(tensor() is None for tensor in _last.tensors):
        return None
    return (_last.told, _last.first) if _last.key == _key(student, teacher) else None


def _key(*tensors: Tensor) -> tuple[Any, ...]:
    """Return what tells a tensor that lives from all others, changed in place or not."""
    return tuple(
        (t.data_ptr(), t.shape, t.stride(), t.dtype, t.device, t._version) for t in tensors
    )
