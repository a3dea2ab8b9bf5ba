"""Forward KL from hidden states and head weights, without either logits tensor."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import (
    check_mask,
    check_reduction,
    check_temperature,
)
from composer_distill.losses.kernel import measured, refuse_second_derivative, scale_gradient
from composer_distill.losses.kl_divergence import FORWARD_KL, KLDivergence, kl_divergence
from composer_distill.losses.precision import compute_dtype
from composer_distill.losses.rows import as_rows
from composer_distill.losses.softened import Divergence

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
    temperature: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Return the divergence of ``hidden @ weight.T`` of both; see :class:`FusedLinearKL`."""
    temperature = check_temperature(temperature)
    _check_reduction(reduction)
    _check_head("student", student_hidden, student_weight, student_bias)
    _check_head("teacher", teacher_hidden, teacher_weight, teacher_bias)
    _check_pair(student_hidden, student_weight, teacher_hidden, teacher_weight)
    check_mask(mask, student_hidden, -1)
    t_hidden, t_weight = teacher_hidden.detach(), teacher_weight.detach()
    t_bias = None if teacher_bias is None else teacher_bias.detach()
    if torch.compiler.is_compiling():
        student = nn.functional.linear(student_hidden, student_weight, student_bias)
        teacher = nn.functional.linear(t_hidden, t_weight, t_bias)
        return kl_divergence(student, teacher, mask, temperature=temperature, reduction=reduction)
    index = None if mask is None else mask.reshape(-1).nonzero().squeeze(1)
    rows = student_hidden.shape[:-1].numel() if index is None else index.shape[0]
    first = student_hidden.shape[0]
    divisor = {"mean": max(rows, 1), "batchmean": max(first, 1), "sum": 1}[reduction]
    of_student = (as_rows(student_hidden, -1), student_weight, student_bias)
    inputs = (*of_student, as_rows(t_hidden, -1), t_weight, t_bias, index, temperature)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in of_student):
        return cast(Tensor, _Fused.apply(divisor, *inputs))
    return _fused(divisor, (False, False, False), *inputs)[0]


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
        _check_reduction(reduction)
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
            temperature=check_temperature(self.temperature),
            reduction=self.reduction,
        )

    def __repr__(self) -> str:
        return (
            repr(self._divergence).replace("KLDivergence", "FusedLinearKL").replace("dim=-1, ", "")
        )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, divisor: int, *inputs: Any) -> Tensor:
        value, *gradients = _fused(divisor, ctx.needs_input_grad[1:4], *inputs)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if x is None else x.dtype for x in inputs[:3]]
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        scaled = [
            None if gradient is None else scale_gradient(gradient, grad_outputs[0]).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, *scaled, None, None, None, None, None


def _fused(
    divisor: int,
    wanted: tuple[bool, bool, bool],
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    index: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the divergence and the gradients of hidden states, weight and bias that are wanted."""
    dtype = compute_dtype(hidden, teacher_hidden)
    n = hidden.shape[0] if index is None else index.shape[0]
    total = torch.zeros((), dtype=dtype, device=hidden.device)
    d_hidden = torch.zeros_like(hidden, dtype=dtype) if wanted[0] else None
    d_weight = torch.zeros_like(weight, dtype=dtype) if wanted[1] else None
    d_bias = torch.zeros_like(weight[:, 0], dtype=dtype) if wanted[2] else None
    size = max(1, _ENTRIES // weight.shape[0])
    divergence = Divergence(FORWARD_KL, temperature, temperature**2 / divisor)
    for start in range(0, n, size):
        at = slice(start, start + size) if index is None else index[start : start + size]
        rows = hidden[at]
        student = nn.functional.linear(rows, weight, bias).to(dtype)
        teacher = nn.functional.linear(teacher_hidden[at], teacher_weight, teacher_bias).to(dtype)
        part = measured(student, teacher, None, divergence, any(wanted), overwrite=True)
        total += part.total
        gradient = part.gradient
        if gradient is None:
            continue
        if d_hidden is not None:
            d_hidden[at] = (gradient.to(weight.dtype) @ weight).to(dtype)
        if d_weight is not None:
            d_weight.addmm_(gradient.T, rows.to(dtype))
        if d_bias is not None:
            d_bias += gradient.sum(0)
    return total, d_hidden, d_weight, d_bias


def _check_reduction(reduction: str) -> None:
    if check_reduction(reduction) == "none":
        raise ValueError(
            "reduction must be 'mean', 'batchmean' or 'sum' for the fused loss, got 'none': "
            "its terms never exist at one time. Use KLDivergence on the logits."
        )


def _check_head(name: str, hidden: Any, weight: Any, bias: Any) -> None:
    for part, value in (("hidden", hidden), ("weight", weight)):
        if not (isinstance(value, Tensor) and value.is_floating_point()):
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"{name}_{part} must be a floating-point tensor, got {kind}. "
                "Pass the last hidden states and the head's weight."
            )
    if weight.ndim != 2 or hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{name}_hidden (..., H) and {name}_weight (V, H) must share H, got "
            f"{tuple(hidden.shape)} and {tuple(weight.shape)}. Pass the weight as torch.nn.Linear "
            "has it."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}_bias must have the shape {tuple(weight.shape[:1])}, got "
            f"{tuple(bias.shape)}. Pass the head's own bias, or None."
        )


def _check_pair(s_hidden: Tensor, s_weight: Tensor, t_hidden: Tensor, t_weight: Tensor) -> None:
    if s_hidden.shape[:-1] != t_hidden.shape[:-1]:
        raise ValueError(
            f"student and teacher hidden states must have the same positions, got "
            f"{tuple(s_hidden.shape)} and {tuple(t_hidden.shape)}. Align the tokens first."
        )
    if s_weight.shape[0] != t_weight.shape[0]:
        raise ValueError(
            f"student and teacher weights must have the same classes, got {s_weight.shape[0]} and "
            f"{t_weight.shape[0]}. Cut both to their common vocabulary."
        )
    if s_weight.shape[0] < 2:
        raise ValueError(
            f"student and teacher weights must have 2 classes or more, got {s_weight.shape[0]}, "
            "over which a softmax is always 1. Use BernoulliKL on the logits."
        )
