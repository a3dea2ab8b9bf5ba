"""What a divergence of softened distributions is: its arguments, its layout, its reduction."""

import torch
from torch import Tensor

from composer_distill.losses.checks import (
    check_dim,
    check_inputs,
    check_reduction,
    check_temperature,
)
from composer_distill.losses.kernel import added_up
from composer_distill.losses.rows import Rows, as_rows, lay_out
from composer_distill.losses.softened import Divergence, Formula, soften


def divergence(
    formula: Formula,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    dim: int,
    reduction: str,
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

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a value is out of range or shapes do not fit.
    """
    temperature, chosen = check_temperature(temperature), check_reduction(reduction)
    factor = temperature**2 if formula.squared else 1.0
    fewest = 1 if formula.independent else 2
    if chosen == "none" or torch.compiler.is_compiling():
        rows = lay_out(student, teacher, mask, dim, chosen, fewest=fewest)
        return _by_terms(rows, Divergence(formula, temperature, factor))
    check_inputs(student, teacher, mask, check_dim(dim), fewest)
    s, t, index = as_rows(student, dim), as_rows(teacher, dim), None
    if mask is not None and not bool(mask.all()):
        index = mask.reshape(-1).nonzero().squeeze(1)
    if chosen == "mean":
        factor /= len(s if index is None else index) or 1
    elif chosen == "batchmean":
        factor /= len(student) or 1
    return added_up(s, t, index, Divergence(formula, temperature, factor))


def _by_terms(rows: Rows, divergence: Divergence) -> Tensor:
    """Return the divergence, in operations that autograd and dynamo understand."""
    formula, temperature, factor = divergence
    q, p = (
        soften(logits, temperature, independent=formula.independent)
        for logits in (rows.student, rows.teacher)
    )
    terms = factor * formula.terms(q, p, *formula.arguments)
    if rows.reduction == "none":
        return rows.reduce_terms(terms)
    return rows.reduce_divergence(terms.sum(-1))
