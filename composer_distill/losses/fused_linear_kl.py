"""Forward KL from hidden states and head weights, without either logits tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_mask, check_temperature
from composer_distill.losses.fused_checks import (
    check_cap,
    check_fused_reduction,
    check_head,
    check_pair,
)
from composer_distill.losses.kernel import measured, refuse_second_derivative, scale_gradient
from composer_distill.losses.kl_divergence import FORWARD_KL, KLDivergence, kl_divergence
from composer_distill.losses.precision import compute_dtype
from composer_distill.losses.rows import as_rows
from composer_distill.losses.softened import Divergence

Watch = Callable[[Tensor, Tensor], None]
"""Sees the student's and the teacher's logits of each chunk, ``(rows, V)``; may not keep them."""

# Logits of one chunk: enough rows for a matrix product to be efficient, few enough to be small.
_ENTRIES = 2**23


def fused_linear_kl(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    mask: Tensor | None = None,
    *,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    student_cap: float | None = None,
    teacher_cap: float | None = None,
    temperature: float = 1.0,
    reduction: str = "mean",
    watch: Watch | None = None,
) -> Tensor:
    """Return the divergence of ``hidden @ weight.T`` of both; see :class:`FusedLinearKL`."""
    temperature = check_temperature(temperature)
    check_fused_reduction(reduction)
    check_head("student", student_hidden, student_weight, student_bias)
    check_head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    check_pair(student_hidden, student_weight, teacher_hidden, teacher_weight)
    check_mask(mask, student_hidden, -1)
    check_cap("student", student_cap)
    check_cap("teacher", teacher_cap)
    t_bias = None if teacher_bias is None else teacher_bias.detach()
    teacher = _Head(teacher_hidden.detach(), teacher_weight.detach(), t_bias, teacher_cap)
    if torch.compiler.is_compiling():
        student = _Head(student_hidden, student_weight, student_bias, student_cap)
        pair = student.logits(), teacher.logits()
        return kl_divergence(*pair, mask, temperature=temperature, reduction=reduction)
    index = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    rows = student_hidden.shape[:-1].numel() if index is None else index.shape[0]
    first = student_hidden.shape[0]
    divisor = {"mean": max(rows, 1), "batchmean": max(first, 1), "sum": 1}[reduction]
    of_student = (as_rows(student_hidden, -1), student_weight, student_bias)
    teacher = teacher._replace(hidden=as_rows(teacher.hidden, -1))
    how = _How(teacher, student_cap, index, temperature, divisor, watch)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in of_student):
        return cast(Tensor, _Fused.apply(how, *of_student))
    return _fused(how, (False, False, False), *of_student)[0]


class FusedLinearKL(nn.Module):
    """Forward KL of two heads' outputs, chunk by chunk: neither logits tensor ever exists.

    The value and gradients are those of ``KLDivergence(temperature)(student_hidden @
    student_weight.T, teacher_hidden @ teacher_weight.T)``, multiplied by T^2 as there, but its
    temperature is 1 where none is given, and there it is 4. A few rows of logits are made
    at a time, turned into their gradient, and multiplied on into the gradients of the hidden states
    and of the weight; those are all that is kept. Beyond them, the memory does not depend on the
    number of tokens. The weight's gradient is added up in float32.

    ``Distillation(teachers, FusedLinearKL())`` takes the hidden states and heads out of language
    models by itself. It is called with four tensors and not with two logits, so that it is no part
    of a weighted sum. Under ``torch.compile`` it falls back on the unfused expression. It cannot be
    differentiated twice.

    Args:
        temperature: T, a number or a schedule (see :meth:`resolve`).
        reduction: ``'mean'``, ``'batchmean'`` or ``'sum'``, as in :class:`KLDivergence`.

    Shape:
        - student_hidden: ``(..., H)``; student_weight: ``(V, H)``; student_bias: ``(V)``.
        - teacher_hidden: ``(..., G)``; teacher_weight: ``(V, G)``; teacher_bias: ``(V)``.
        - mask: ``(...)``, boolean; positions that are false do not count and cost nothing.
        - output: a scalar.

    Called with ``student_cap`` or ``teacher_cap``, logits are ``cap * tanh(product / cap)``. A
    ``watch`` is called with the logits of each chunk, ``(rows, V)`` of student and teacher, at no
    gradient; it must not keep them.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If shapes do not fit, or the reduction is ``'none'``.

    Reference:
        Hinton, Vinyals and Dean, arXiv 1503.02531, for the divergence.

    Example:
        >>> import torch
        >>> hidden, weight = torch.randn(6, 4), torch.randn(10, 4)
        >>> FusedLinearKL()(hidden, weight, hidden, weight)
        tensor(0.)
    """

    def __init__(self, temperature: float | Schedule = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        check_fused_reduction(reduction)
        self._divergence = KLDivergence(temperature, reduction=reduction)

    @property
    def temperature(self) -> float | Schedule:
        """The current temperature, or the schedule before the first :meth:`resolve`."""
        return self._divergence.temperature

    @property
    def reduction(self) -> str:
        """How positions become a scalar."""
        return self._divergence.reduction

    def resolve(self, state: Any) -> None:
        """Set a scheduled temperature for this batch."""
        self._divergence.resolve(state)

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        mask: Tensor | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        student_cap: float | None = None,
        teacher_cap: float | None = None,
        watch: Watch | None = None,
    ) -> Tensor:
        """Return the divergence."""
        return fused_linear_kl(
            student_hidden,
            student_weight,
            teacher_hidden,
            teacher_weight,
            mask,
            student_bias=student_bias,
            teacher_bias=teacher_bias,
            student_cap=student_cap,
            teacher_cap=teacher_cap,
            watch=watch,
            temperature=check_temperature(self.temperature),
            reduction=self.reduction,
        )

    def __repr__(self) -> str:
        return (
            repr(self._divergence).replace("KLDivergence", "FusedLinearKL").replace("dim=-1, ", "")
        )


class _Head(NamedTuple):
    """What gives logits; see :class:`FusedLinearKL`."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    cap: float | None

    def logits(self, at: Any = ...) -> Tensor:
        product = nn.functional.linear(self.hidden[at], self.weight, self.bias)
        return product if self.cap is None else self.cap * torch.tanh(product / self.cap)


class _How(NamedTuple):
    """What a student's head is measured against, and how; no part of it gets a gradient."""

    teacher: _Head
    student_cap: float | None
    rows: Tensor | None  # those that count
    temperature: float
    divisor: int
    watch: Watch | None


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: _How, *of_student: Any) -> Tensor:
        value, *gradients = _fused(how, ctx.needs_input_grad[1:4], *of_student)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in of_student]
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        scaled = [
            None if gradient is None else scale_gradient(gradient, grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *scaled


def _fused(
    how: _How,
    wanted: tuple[bool, bool, bool],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the divergence and the gradients of hidden states, weight and bias that are wanted."""
    index, cap = how.rows, how.student_cap
    dtype = compute_dtype(hidden, how.teacher.hidden)
    n = hidden.shape[0] if index is None else index.shape[0]
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    d_hidden = torch.zeros_like(hidden, dtype=dtype) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
    d_bias = torch.zeros_like(weight[:, 0], dtype=dtype) if wanted[2] else None
    size = max(1, _ENTRIES // weight.shape[0])
    divergence = Divergence(FORWARD_KL, how.temperature, how.temperature**2 / how.divisor)
    for start in range(0, n, size):
        at = slice(start, start + size) if index is None else index[start : start + size]
        rows = hidden[at]
        student = _Head(rows, weight, bias, cap).logits().to(dtype)
        teacher = how.teacher.logits(at).to(dtype)
        if how.watch is not None:
            how.watch(student, teacher)
        # d tanh(x) = 1 - tanh(x)^2, before the logits' memory becomes the gradient's
        slope = None if cap is None or not any(wanted) else 1.0 - (student / cap).square_()
        part = measured(student, teacher, None, divergence, any(wanted), overwrite=True)
        total += part.total
        gradient = part.gradient
        if gradient is None:
            continue
        if slope is not None:
            gradient.mul_(slope)
        if d_hidden is not None:
            d_hidden[at] = (gradient.to(weight.dtype) @ weight).to(dtype)
        if d_weight is not None:
            d_weight.addmm_(gradient.T, rows.to(dtype))
        if d_bias is not None:
            d_bias += gradient.sum(0)
    return total, d_hidden, d_weight, d_bias
