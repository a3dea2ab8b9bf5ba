"""Softened distributions, and what divergences of two of them are written in.

Everything here acts on each row by itself and is exact where student and teacher are equal.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from composer_distill.losses.rows import FLOOR

# Below this the time goes into starting operations.
_SMALL_ENTRIES = 2**15
# With fewer classes a softmax costs more than a log-softmax and an exponential.
_FEW_CLASSES = 64


class Peak(NamedTuple):
    """The largest logit of each row and its probability, ``(N, 1)``."""

    logit: Tensor
    prob: Tensor


class Softened(NamedTuple):
    """Rows of logits over the temperature, their softmax, and their peaks.

    There are no peaks where the logits are normalised, so that their log-sum-exp is 0.
    """

    logits: Tensor
    probs: Tensor
    peak: Peak | None = None


class Formula(NamedTuple):
    """One divergence: what its terms are and, where that is faster, its gradient.

    Attributes:
        terms: From student, teacher and the arguments to the terms ``(N, C)`` that add up to the
            divergence, in operations that autograd and ``torch.compile`` understand.
        rows: From student, teacher, whether a gradient is wanted, and the arguments, to values that
            add up to the divergence, ``(N,)`` or ``(N, C)``, and the gradient ``(N, C)`` with
            respect to the student's logits over the temperature. It may overwrite the probabilities
            that it is given, and not the logits. A class at minus infinity must not pass unseen:
            where it makes the gradient infinite or NaN, it must make a value so. Where there is
            none, autograd differentiates the terms, a few rows at a time.
        arguments: What else ``terms`` and ``rows`` are called with.
        squared: Whether the divergence is multiplied by the square of the temperature.
        independent: Whether each class is an outcome by itself, whose probability is a sigmoid,
            instead of one of several that exclude each other, as in a softmax.
        kernel: Its name in :mod:`composer_distill.losses.triton_rows`; None where it has no kernel.
    """

    terms: Callable[..., Tensor]
    rows: Callable[..., tuple[Tensor, Tensor | None]] | None = None
    arguments: tuple[float, ...] = ()
    squared: bool = True
    independent: bool = False
    kernel: str | None = None


class Divergence(NamedTuple):
    """A formula at a temperature, times a factor: all that rows of logits are measured by.

    Attributes:
        formula: Which divergence.
        temperature: Divides the logits of both.
        factor: What the sum over rows and its gradient are multiplied by.
    """

    formula: Formula
    temperature: float
    factor: float = 1.0


def soften(logits: Tensor, temperature: float, *, independent: bool = False) -> Softened:
    """Return the probabilities of rows of logits and what they are made of, finite everywhere."""
    scaled = logits.clamp(min=FLOOR)
    if temperature != 1.0:
        scaled = scaled * (1.0 / temperature)
    if independent:
        return Softened(scaled, scaled.sigmoid())
    log_probs = scaled.log_softmax(-1)
    return Softened(log_probs, log_probs.exp())


def soften_chunk(
    logits: Tensor,
    dtype: torch.dtype,
    temperature: float,
    *,
    floor: bool,
    shift: bool = False,
    independent: bool = False,
) -> Softened:
    """Return what :func:`soften` does, without a graph and in as little time as the size allows.

    Args:
        logits: A few rows.
        dtype: The type to compute in.
        temperature: Divides the logits.
        floor: Whether to keep classes at minus infinity finite, which costs a pass.
        shift: Whether the digits of a small entropy are wanted, which may cost a pass: then each
            row's largest logit becomes 0.
        independent: Whether the probabilities are sigmoids instead of a softmax.
    """
    scaled = logits.to(dtype)
    if floor:
        scaled = scaled.clamp(min=FLOOR)
    if temperature != 1.0:
        scaled = scaled * (1.0 / temperature)
    if independent:
        return Softened(scaled, scaled.sigmoid())
    if scaled.shape[-1] <= _FEW_CLASSES or scaled.numel() <= _SMALL_ENTRIES:
        log_probs = scaled.log_softmax(-1)
        return Softened(log_probs, log_probs.exp())
    probs, largest = scaled.softmax(-1), scaled.amax(-1, keepdim=True)
    highest = probs.amax(-1, keepdim=True)
    if shift:
        return Softened(scaled - largest, probs, Peak(torch.zeros_like(largest), highest))
    return Softened(scaled, probs, Peak(largest, highest))


def lse(softened: Softened) -> Tensor | float:
    """Return the log-sum-exp of each row, ``(N, 1)``, or the number 0 where it is that."""
    # The largest probability is exp(0) / Z, so that this needs no other exponential.
    return 0.0 if softened.peak is None else softened.peak.logit - softened.peak.prob.log()


def log_ratio(student: Softened, teacher: Softened) -> Tensor:
    """Return ``log p - log q``, exactly zero where student and teacher are equal."""
    ratio = teacher.logits - student.logits
    if student.peak is None or teacher.peak is None:
        return ratio
    return ratio.add_(lse_gap(student.peak, teacher.peak))


def lse_gap(student: Peak, teacher: Peak) -> Tensor:
    """Return the student's log-sum-exp less the teacher's, ``(N, 1)``, also where both are close.

    The difference of the two themselves would keep the rounding of both, which are far larger.
    """
    excess = (teacher.prob - student.prob) / student.prob
    return (student.logit - teacher.logit) + excess.log1p()


def surplus(student: Softened, teacher: Softened) -> Tensor:
    """Return the sum of ``p - q`` of each row, ``(N,)``; overwrites the teacher's probabilities.

    It is 0 but for the rounding with which each of the two was made to add up to 1. The same
    rounding is in :func:`lse_gap`: near agreement the reverse KL becomes as exact as its terms when
    this is added, and the forward KL when it is taken away, since no term of
    ``sum_c [q log(q / p) + p - q]`` is negative.
    """
    return teacher.probs.sub_(student.probs).sum(-1)


def add_to_rows(values: Tensor, addend: Tensor | float) -> Tensor:
    """Add log-sum-exps ``(N, 1)``, or a difference of two, to values ``(N,)``."""
    # Where the logits are normalised there is nothing to add, and small inputs notice an addition.
    return values + addend.squeeze(-1) if isinstance(addend, Tensor) else values


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
