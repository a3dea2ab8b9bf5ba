"""A divergence of two softmaxes and its gradient, a few rows at a time.

The plain expression holds both softmaxes, their logarithms and the gradients of each: five tensors
as large as the logits at float32, more at bfloat16. But each row's gradient depends on that row
alone and has a closed form, so one pass over a few rows at a time, small enough to stay in cache,
leaves nothing behind but the gradient, in the student's own type.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from composer_distill.losses.rows import (
    FLOOR,
    Reduction,
    as_rows,
    check_dim,
    check_inputs,
    check_reduction,
    check_temperature,
    compute_dtype,
    reduce_rows,
    restore_layout,
    select_rows,
)

# Entries of one chunk. Four float32 tensors of this size for each thread stay in a core's second
# level cache; a GPU wants far larger ones, to be busy between two launches.
_CPU_ENTRIES_PER_THREAD = 2**17
_GPU_ENTRIES = 2**24
# Below this the time goes into starting operations.
_SMALL_ENTRIES = 2**15


class Softened(NamedTuple):
    """Rows of logits over the temperature, their softmax, and their log-sum-exp.

    The log-sum-exp is ``(N, 1)``, or the scalar 0 where the logits are normalised.
    """

    logits: Tensor
    probs: Tensor
    lse: Tensor


class Formula(NamedTuple):
    """One divergence, twice: to be differentiated, and with its gradient.

    Attributes:
        terms: From student and teacher to the terms ``(N, C)`` that add up to the divergence, in
            operations that autograd and ``torch.compile`` understand.
        rows: From student, teacher and whether a gradient is wanted to the values ``(N,)`` and the
            gradient ``(N, C)`` with respect to the student's logits over the temperature. It may
            overwrite what it is given.
    """

    terms: Callable[[Softened, Softened], Tensor]
    rows: Callable[[Softened, Softened, bool], tuple[Tensor, Tensor | None]]


def soften(logits: Tensor, temperature: float) -> Softened:
    """Return the softmax of rows of logits and what its logarithm needs, finite everywhere."""
    scaled = logits.clamp(min=FLOOR)
    if temperature != 1.0:
        scaled = scaled * (1.0 / temperature)
    return Softened(scaled, scaled.softmax(-1), scaled.logsumexp(-1, keepdim=True))


def log_ratio(student: Softened, teacher: Softened) -> Tensor:
    """Return ``log p - log q``, exactly zero where student and teacher are equal."""
    return (teacher.logits - student.logits) + (student.lse - teacher.lse)


def bounded_log_ratio(student: Softened, teacher: Softened) -> Tensor:
    """Return ``log p - log q`` between -80 and 80, for divergences from a mixture of p and q.

    Beyond, the smaller of the two no longer matters to the mixture, and its exponential must not
    overflow.
    """
    return log_ratio(student, teacher).clamp(-80.0, 80.0)


def student_over_mixture(ratio: Tensor, share: float) -> Tensor:
    """Return ``log q - log m`` for ``m = share p + (1 - share) q``.

    Args:
        ratio: What :func:`bounded_log_ratio` returns.
        share: The teacher's share of the mixture.

    Returns:
        A tensor that is exactly zero where p and q are equal.
    """
    return (share * ratio.expm1()).log1p().neg()


def through_softmax(direction: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``q * (direction - <q, direction>)`` and ``<q, direction>``; overwrites ``direction``.

    This is the gradient with respect to the logits of what has the gradient ``direction`` with
    respect to the probabilities ``q``.
    """
    mean = torch.linalg.vecdot(q, direction)
    return direction.sub_(mean.unsqueeze(-1)).mul_(q), mean


def divergence(
    formula: Formula,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    *,
    temperature: float,
    dim: int,
    reduction: str,
    squared: bool = True,
) -> Tensor:
    """Return a divergence of two softened distributions, reduced over positions.

    Args:
        formula: Which divergence.
        student: The student's logits.
        teacher: The teacher's logits.
        mask: True where a position counts.
        temperature: Divides the logits of both.
        dim: The class axis.
        reduction: ``'mean'``, ``'batchmean'``, ``'sum'`` or ``'none'``.
        squared: Whether to multiply by the square of the temperature.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range or shapes do not fit.
    """
    temperature, chosen = check_temperature(temperature), check_reduction(reduction)
    check_inputs(student, teacher, mask, check_dim(dim))
    factor = temperature**2 if squared else 1.0
    if chosen == "none" or torch.compiler.is_compiling():
        return _plain(formula, student, teacher, mask, temperature, factor, dim, chosen)
    index = None
    if mask is not None and not bool(mask.all()):
        index = mask.reshape(-1).nonzero().squeeze(1)
    s, t = as_rows(student, dim), as_rows(teacher.detach(), dim)
    if s.requires_grad and torch.is_grad_enabled():
        values = cast(Tensor, _Chunked.apply(s, t, index, temperature, factor, formula))
    else:
        values = values_and_gradient(s, t, index, temperature, formula, False)[0] * factor
    return reduce_rows(values, None, chosen, student, dim)


def _plain(
    formula: Formula,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    factor: float,
    dim: int,
    reduction: Reduction,
) -> Tensor:
    rows = select_rows(student, teacher, mask, dim, whole=True)
    terms = formula.terms(soften(rows.student, temperature), soften(rows.teacher, temperature))
    if reduction == "none":
        return restore_layout(factor * terms, rows.keep, student, dim)
    return reduce_rows(factor * terms.sum(-1), rows.keep, reduction, student, dim)


class _Chunked(torch.autograd.Function):
    """One value a row; stores the gradient of each, in the student's type, and nothing else."""

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor,
        index: Tensor | None,
        temperature: float,
        factor: float,
        formula: Formula,
    ) -> Tensor:
        values, gradient, scale = values_and_gradient(
            student, teacher, index, temperature, formula, True
        )
        ctx.save_for_backward(gradient, scale, index)
        ctx.factor, ctx.rows = factor / temperature, student.shape[0]
        return values * factor

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradient, scale, index = ctx.saved_tensors
        weight = grad_outputs[0].detach()
        # One weight for all rows, as after a mean: a scalar multiplies without a conversion.
        uniform = scale is None and weight.numel() > 0 and weight.stride(0) == 0
        weight = weight[0] if uniform else weight.unsqueeze(1)
        weight = weight * ctx.factor if scale is None else weight * ctx.factor * scale.unsqueeze(1)
        gradient = scale_gradient(gradient, weight)
        if index is not None:
            whole = gradient.new_zeros(ctx.rows, gradient.shape[1])
            gradient = whole.index_copy_(0, index, gradient)
        if torch.is_grad_enabled():
            gradient = _NotTwice.apply(gradient.detach().requires_grad_())
        return gradient, None, None, None, None, None


class _NotTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        raise RuntimeError(
            "the chunked divergence keeps its gradient and not its inputs, so that it cannot be "
            "differentiated twice. Use reduction='none' and reduce the terms yourself."
        )


def scale_gradient(gradient: Tensor, weight: Tensor) -> Tensor:
    """Return a saved gradient times ``weight``, a scalar or one entry a row.

    The saved tensor itself becomes the result, so that there is never a second one of its size;
    where the graph is kept for another backward it must stay as it is.
    """
    if _graph_is_kept():
        gradient = gradient.clone()
    if weight.ndim == 0 or weight.dtype == gradient.dtype:
        return gradient.mul_(weight)
    # Of unlike types torch would make a whole copy first.
    for start, stop in _chunks(gradient.shape[0], gradient.shape[1], gradient.device):
        gradient[start:stop].mul_(weight[start:stop])
    return gradient


def _graph_is_kept() -> bool:
    """Tell whether this backward was asked to keep the graph; True where torch cannot say."""
    autograd = getattr(torch._C, "_autograd", None)
    ask = getattr(autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else ask()


def _chunks(rows: int, classes: int, device: torch.device) -> list[tuple[int, int]]:
    """Return the bounds of chunks that are as many rows as fit a cache, and at least one."""
    on_cpu = device.type == "cpu"
    entries = _CPU_ENTRIES_PER_THREAD * torch.get_num_threads() if on_cpu else _GPU_ENTRIES
    size = max(1, entries // classes)
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _soften_chunk(logits: Tensor, dtype: torch.dtype, temperature: float) -> Softened:
    # Not in place where the type is already right: that would change the caller's logits.
    same = logits.dtype == dtype
    scaled = logits.clamp(min=FLOOR) if same else logits.to(dtype).clamp_(min=FLOOR)
    if temperature != 1.0:
        scaled.mul_(1.0 / temperature)
    if scaled.numel() <= _SMALL_ENTRIES:
        # Few operations count more than few exponentials; normalised logits need no log-sum-exp.
        log_probs = scaled.log_softmax(-1)
        return Softened(log_probs, log_probs.exp(), log_probs.new_zeros(()))
    probs = scaled.softmax(-1)
    # The largest probability is exp(0) / Z, so this is max + log Z without another exponential.
    lse = scaled.amax(-1, keepdim=True) - probs.amax(-1, keepdim=True).log()
    return Softened(scaled, probs, lse)


def values_and_gradient(
    student: Tensor,
    teacher: Tensor,
    index: Tensor | None,
    temperature: float,
    formula: Formula,
    wanted: bool,
    *,
    overwrite: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the values ``(N,)``, their gradients ``(N, C)`` and a scale of the gradients.

    The gradient is with respect to the logits over the temperature, in the student's type. Its
    rows are empty where it is not ``wanted``. float16 cannot hold what is far below 1, such as a
    probability among 100 000, so its rows are divided by their largest entry, the scale. Where the
    student's logits may be ``overwrite``-n, their memory becomes the gradient's.
    """
    dtype = compute_dtype(student, teacher)
    n = student.shape[0] if index is None else index.shape[0]
    if n * student.shape[1] <= _SMALL_ENTRIES and index is None and student.dtype == dtype:
        q, p = (_soften_chunk(logits, dtype, temperature) for logits in (student, teacher))
        values, small_gradient = formula.rows(q, p, wanted)
        return values, values if small_gradient is None else small_gradient, None
    values = torch.empty(n, dtype=dtype, device=student.device)
    gradient = student if overwrite else student.new_empty(n if wanted else 0, student.shape[1])
    scale = torch.ones_like(values) if student.dtype == torch.float16 and wanted else None
    for start, stop in _chunks(n, student.shape[1], student.device):
        at = slice(start, stop) if index is None else index[start:stop]
        q, p = (_soften_chunk(logits[at], dtype, temperature) for logits in (student, teacher))
        values[start:stop], row_gradient = formula.rows(q, p, wanted)
        if row_gradient is None:
            continue
        if scale is not None:
            largest = row_gradient.abs().amax(-1).clamp(min=torch.finfo(dtype).tiny)
            scale[start:stop] = largest
            row_gradient.div_(largest.unsqueeze(1))
        gradient[start:stop] = row_gradient
    return values, gradient, scale
