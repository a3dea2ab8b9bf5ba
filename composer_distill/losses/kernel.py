"""A divergence of two softmaxes and its gradient, a few rows at a time.

The plain expression holds both softmaxes, their logarithms and the gradients of each: five tensors
as large as the logits at float32, more at bfloat16. But each row's gradient depends on that row
alone and has a closed form, so one pass over a few rows at a time, small enough to stay in cache,
leaves nothing behind but the gradient, in the student's own type.
"""

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from composer_distill.losses import fused_rows
from composer_distill.losses.precision import can_be_read, compute_dtype, full_precision
from composer_distill.losses.softened import Divergence, Formula, soften, soften_chunk
from composer_distill.threads import second_level_cache, spread

# Entries of one chunk. On a CPU a float32 tensor of this size takes a quarter of the second-level
# cache that a core has to itself: far larger ones leave it, far smaller ones spend the time on
# starting operations. A GPU wants far larger ones, to be busy between two launches.
_CPU_ENTRIES = second_level_cache() // 16
_GPU_ENTRIES = 2**24
_KEEPS_GRAPH = getattr(
    getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None
)


class Chunked(NamedTuple):
    """A divergence added up over rows, and its gradient.

    Attributes:
        total: The sum, a scalar.
        gradient: ``(N, C)``, in the student's type; None where it was not wanted.
        scale: ``(N,)``, by which the gradient's rows are still to be multiplied; None for 1.
            float16 cannot hold what is far below 1, such as a probability among 100 000, so its
            rows are divided by their largest entry.
    """

    total: Tensor
    gradient: Tensor | None
    scale: Tensor | None


def added_up(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    divergence: Divergence,
) -> Tensor:
    """Return the total of :func:`measured`, which has a gradient where the student wants one."""
    if student.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _WithGradient.apply(student, teacher, index, divergence))
    with torch.no_grad():
        return measured(student, teacher, index, divergence, False).total


class _WithGradient(torch.autograd.Function):
    """Stores the gradient, in the student's type, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        index: Tensor | None,
        divergence: Divergence,
    ) -> Tensor:
        found = measured(student, teacher, index, divergence, True)
        ctx.save_for_backward(found.gradient, found.scale, index)
        ctx.shape = student.shape
        return found.total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        gradient, scale, index = ctx.saved_tensors
        gradient = scale_gradient(gradient, grad_outputs[0], scale)
        if index is not None:
            whole = gradient.new_zeros(ctx.shape)
            gradient = whole.index_copy_(0, index, gradient)
        return gradient, None, None, None


def refuse_second_derivative() -> None:
    """Refuse a backward whose graph is asked for: its derivative would come out as zero.

    Raises:
        RuntimeError: In a backward with ``create_graph=True``.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the chunked divergence keeps its gradient and not its inputs, so that it cannot be "
            "differentiated twice, as create_graph=True asks for. Use reduction='none' and reduce "
            "the terms yourself; the fused loss has none, so use KLDivergence(reduction='none')."
        )


def scale_gradient(gradient: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return a saved gradient times ``weight``, a scalar, and times ``scale``, one entry a row.

    The saved tensor itself becomes the result, so that there is never a second one of its size;
    where the graph is kept for another backward it must stay as it is.
    """
    if _graph_is_kept():
        gradient = gradient.clone()
    if scale is None:
        is_one = can_be_read(weight) and weight.item() == 1.0
        return gradient if is_one else gradient.mul_(weight)
    by_row = (scale * weight).unsqueeze(1)
    # Of unlike types torch would make a whole copy first.
    for rows in _chunks(gradient.shape[0], gradient):
        gradient[rows].mul_(by_row[rows])
    return gradient


def _graph_is_kept() -> bool:
    """Tell whether this backward was asked to keep the graph; True where torch cannot say."""
    return True if _KEEPS_GRAPH is None else _KEEPS_GRAPH()


def _chunks(rows: int, like: Tensor, threads: int = 1) -> list[slice]:
    """Return chunks that are as many rows as fit a cache."""
    size = _rows_at_once(like, threads)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _rows_at_once(like: Tensor, threads: int = 1) -> int:
    """Return how many rows a chunk has, at least one.

    Several threads wait for each other to start an operation, since one alone holds Python's
    interpreter, and twice the size halves how often. That counts for more than the cache does.
    """
    entries = _CPU_ENTRIES * min(threads, 2) if like.is_cpu else _GPU_ENTRIES
    return max(1, entries // like.shape[1])


def measured(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    divergence: Divergence,
    wanted: bool,
    *,
    overwrite: bool = False,
) -> Chunked:
    """Return what :func:`chunked` does: by one Triton kernel where there is one and it agrees."""
    inputs = (student, teacher, index, divergence)
    if not (
        fused_rows.can_run(divergence.formula, student, teacher)
        and fused_rows.agrees(chunked, divergence.formula, student, teacher)
    ):
        return chunked(*inputs, wanted, overwrite=overwrite)
    tells = divergence.temperature == 1.0 and index is None
    found = fused_rows.run(*inputs, wanted=wanted, tells=tells, overwrite=overwrite)
    if not overwrite:
        fused_rows.keep(student, teacher, found)
    total = (found.values.sum() * divergence.factor).clamp_(min=0.0)
    return Chunked(total, found.gradient, found.scale)


def told(formula: Formula, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return what telemetry tells of rows of logits, where the kernel runs; elsewhere None.

    Behind a loss at temperature 1 that was computed of these very rows it is there already.

    Args:
        formula: The forward KL.
        student: The student's logits, ``(N, C)``.
        teacher: The teacher's logits, ``(N, C)``.

    Returns:
        The forward KL at temperature 1 and the entropies of student and teacher, ``(3, N)`` in
        nats, and the class that each puts first, ``(2, N)``.
    """
    if not fused_rows.can_run(formula, student, teacher):
        return None
    known = fused_rows.told(student, teacher)
    if known is None and fused_rows.agrees(chunked, formula, student, teacher):
        found = fused_rows.run(student, teacher, None, Divergence(formula, 1.0), tells=True)
        fused_rows.keep(student, teacher, found)
        known = fused_rows.told(student, teacher)
    return known


def chunked(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    divergence: Divergence,
    wanted: bool,
    *,
    overwrite: bool = False,
) -> Chunked:
    """Return the sum of a divergence over rows, and its gradient.

    Args:
        student: The student's logits, ``(N, C)``.
        teacher: The teacher's logits, ``(N, C)``.
        index: The rows that count; None for all.
        divergence: Which divergence, at which temperature and times what.
        wanted: Whether a gradient is.
        overwrite: Whether the memory of the student's logits may become the gradient's.
    """
    factor, slope = divergence.factor, divergence.factor / divergence.temperature
    dtype = compute_dtype(student, teacher)
    threads = torch.get_num_threads() if student.is_cpu else 1
    few = 0 < len(student) <= _rows_at_once(student, threads) * threads
    how = (divergence, dtype, wanted)
    if few and index is None and student.dtype == dtype:
        total, gradient = _total_and_gradient(student, teacher, *how)
        total = total.mul_(factor).clamp_(min=0.0)
        return Chunked(total, None if gradient is None else gradient.mul_(slope), None)
    n = (student if index is None else index).shape[0]
    gradient = student if overwrite else student.new_empty(n if wanted else 0, student.shape[1])
    by_row = wanted and student.dtype == torch.float16
    scale = student.new_empty(n, dtype=dtype) if by_row else None

    def measure(rows: slice) -> Tensor:
        at = rows if index is None else index[rows]
        part, found = _total_and_gradient(student[at], teacher[at], *how)
        if found is not None:
            _store(found, slope, gradient[rows], None if scale is None else scale[rows])
        return part

    parts = spread(measure, _chunks(n, student, threads), threads)
    total = torch.stack(parts).sum() if parts else student.new_zeros((), dtype=dtype)
    # What falls below 0 near agreement is rounding
    return Chunked((total * factor).clamp_(min=0.0), gradient if wanted else None, scale)


def _store(found: Tensor, slope: float, gradient: Tensor, scale: Tensor | None) -> None:
    """Write the gradient of a few rows, times ``slope``, into its place; overwrites ``found``."""
    if scale is None:
        torch.mul(found, slope, out=gradient)
        return
    largest = found.abs().amax(-1).clamp(min=torch.finfo(found.dtype).tiny)
    torch.mul(largest, slope, out=scale)
    gradient.copy_(found.div_(largest.unsqueeze(1)))


def _total_and_gradient(
    student: Tensor, teacher: Tensor, divergence: Divergence, dtype: torch.dtype, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum over a few rows and the gradient of each with respect to its logits over T."""
    formula, temperature, _ = divergence
    if formula.rows is None:
        with full_precision(student):
            return _by_autograd(student.to(dtype), teacher.to(dtype), divergence, wanted)
    rows = formula.rows

    def once(floor: bool) -> tuple[Tensor, Tensor | None]:
        q, p = (
            soften_chunk(logits, dtype, temperature, floor=floor, independent=formula.independent)
            for logits in (student, teacher)
        )
        values, gradient = rows(q, p, wanted, *formula.arguments)
        return values.sum(), gradient

    with full_precision(student):
        # On a GPU it costs less to give every class a finite logit than to wait for the sum
        if not can_be_read(student):
            return once(floor=True)
        total, gradient = once(floor=False)
        return (total, gradient) if math.isfinite(total.item()) else once(floor=True)


def _by_autograd(
    student: Tensor, teacher: Tensor, divergence: Divergence, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the sum of a formula's terms over a few rows, and what autograd says of it."""
    formula, temperature, _ = divergence
    leaf = (student / temperature).requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        q = soften(leaf, 1.0, independent=formula.independent)
        p = soften(teacher, temperature, independent=formula.independent)
        total = formula.terms(q, p, *formula.arguments).sum()
    return total.detach(), torch.autograd.grad(total, leaf)[0] if wanted else None
