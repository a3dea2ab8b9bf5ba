"""Distances from a teacher of whom few classes a position are known.

Each distance is a sum over outcomes of ``f(log q, log p)``. With the tail as one bucket the
outcomes are the classes that are known and "any other"; spread evenly, they are all classes. The
gradient needs the student's softmax and nothing of the teacher's size, so that it is made a few
rows at a time and no dense teacher ever exists.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from composer_distill.losses.kernel import (
    _chunks,
    refuse_second_derivative,
    scale_gradient,
)
from composer_distill.losses.precision import compute_dtype, full_precision
from composer_distill.losses.rows import FLOOR

SparseTail = Literal["bucket", "uniform", "renormalise"]


@dataclass(frozen=True)
class SparseTarget:
    """What is known of a teacher's distribution at N positions.

    Attributes:
        indices: The classes, distinct at each position save for those of no probability.
        log_probs: Their log-probabilities at the temperature, minus infinity to fill up.
        tail: The log-probability of all other classes together.
        entropy: The teacher's whole entropy at the temperature, in nats.
        classes: How many classes there are.
        temperature: What the logits were divided by.
        sampled: Whether the probabilities are shares of draws: then they are unbiased, and only
            what is linear in them can be learnt from them.

    Shape:
        - indices, log_probs: ``(N, k)``.
        - tail, entropy: ``(N,)``.
    """

    indices: Tensor
    log_probs: Tensor
    tail: Tensor
    entropy: Tensor
    classes: int
    temperature: float = 1.0
    sampled: bool = False

    @property
    def best(self) -> Tensor:
        """The likeliest class of each position, ``(N,)``."""
        return self.indices.gather(1, self.log_probs.argmax(1, keepdim=True)).squeeze(1)

    def map(self, function: Callable[[Tensor], Tensor]) -> "SparseTarget":
        """Return it with a function applied to each tensor."""
        names = ("indices", "log_probs", "tail", "entropy")
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def first(self, k: int) -> "SparseTarget":
        """Return its first k classes, the others in the tail."""
        rest = self.log_probs[:, k:].logsumexp(1)
        tail = torch.logaddexp(self.tail, rest) if k < self.indices.shape[1] else self.tail
        kept = {"indices": self.indices[:, :k], "log_probs": self.log_probs[:, :k]}
        return replace(self, **kept, tail=tail)


class Outcomes(NamedTuple):
    """A distance as a sum over outcomes.

    Attributes:
        terms: From ``log q`` and ``log p`` of outcomes to their terms, and to the terms' derivative
            with respect to ``log q``.
        tail: What becomes of the classes that are not known.
        entropy: Whether the teacher's entropy is taken off.
    """

    terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    tail: SparseTail = "bucket"
    entropy: bool = False


def forward_terms(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of ``KL(p || q)``."""
    p = log_p.exp()
    return p * (log_p - log_q), -p


def cross_terms(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of ``-sum p log q``."""
    p = log_p.exp()
    return -p * log_q, -p


def reverse_terms(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return the terms of ``KL(q || p)``."""
    q = log_q.exp()
    terms = q * (log_q - log_p)
    return terms, terms + q


def mixture_terms(beta: float, scale: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return what gives the terms of ``beta KL(p || m) + (1 - beta) KL(q || m)``."""

    def terms(log_q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        log_m = torch.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
        of_student = (scale * (1.0 - beta)) * log_q.exp() * (log_q - log_m)
        return scale * beta * log_p.exp() * (log_p - log_m) + of_student, of_student

    return terms


def sparse_distance(student: Tensor, target: SparseTarget, outcomes: Outcomes) -> Tensor:
    """Return the mean distance over positions, times the square of the temperature.

    Args:
        student: The student's logits.
        target: What is known of the teacher.
        outcomes: Which distance.

    Shape:
        - student: ``(N, C)``.
        - result: scalar.

    Example:
        >>> known = torch.tensor([[0.5, 0.25]]).log()
        >>> none = torch.tensor([-math.inf])
        >>> rest = torch.tensor([0.25]).log()
        >>> target = SparseTarget(torch.tensor([[2, 0]]), known, rest, none, 4)
        >>> alike = torch.tensor([[0.25, 0.2, 0.5, 0.05]]).log()
        >>> sparse_distance(alike, target, Outcomes(forward_terms)).abs() < 1e-6
        tensor(True)
    """
    if student.requires_grad and torch.is_grad_enabled():
        return cast(Tensor, _Sparse.apply(student, target, outcomes))
    with torch.no_grad():
        return _added_up(student, target, outcomes, False)[0]


class _Sparse(torch.autograd.Function):
    """Stores the gradient, in the student's type, and nothing else."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, target: SparseTarget, outcomes: Outcomes) -> Tensor:
        total, gradient, scale = _added_up(student, target, outcomes, True)
        ctx.save_for_backward(gradient, scale)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        gradient, scale = ctx.saved_tensors
        return scale_gradient(gradient, grad_outputs[0], scale), None, None


def _added_up(
    student: Tensor, target: SparseTarget, outcomes: Outcomes, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the distance, its gradient, and what the gradient's rows are to be multiplied by."""
    count, temperature = max(len(student), 1), target.temperature
    factor, slope = temperature**2 / count, temperature / count
    dtype = compute_dtype(student)
    total = torch.zeros((), dtype=dtype, device=student.device)
    gradient = torch.empty_like(student) if wanted else None
    scale = total.new_empty(len(student)) if wanted and student.dtype == torch.float16 else None
    one = _spread if outcomes.tail == "uniform" else _bucketed
    for at in _chunks(len(student), student):
        part = target.map(lambda tensor, at=at: tensor[at])
        with full_precision(student):
            logits = student[at].detach().to(dtype).clamp(min=FLOOR) / temperature
            values, rows = one(logits, part, outcomes)
            total += values.sum()
            if outcomes.entropy:
                total -= part.entropy.to(dtype).sum()
        if gradient is None:
            continue
        if scale is not None:
            largest = rows.abs().amax(-1).clamp(min=torch.finfo(dtype).tiny)
            scale[at] = largest * slope
            gradient[at] = rows.div_(largest.unsqueeze(1))
        else:
            gradient[at] = rows.mul_(slope)
    return total * factor, gradient, scale


def _bucketed(logits: Tensor, target: SparseTarget, outcomes: Outcomes) -> tuple[Tensor, Tensor]:
    """Return values ``(n,)`` and their gradient with respect to ``logits``, over k + 1 outcomes."""
    known, tail = target.log_probs.to(logits.dtype), target.tail.to(logits.dtype)
    if outcomes.tail == "renormalise":
        known, tail = known.log_softmax(-1), torch.full_like(tail, FLOOR)
    log_p = torch.cat([known, tail.unsqueeze(1)], 1).clamp(min=FLOOR)
    lse = logits.logsumexp(-1, keepdim=True)
    others = logits.scatter(1, target.indices, FLOOR)
    of_others = others.logsumexp(-1, keepdim=True)
    log_q = torch.cat([logits.gather(1, target.indices), of_others], 1) - lse
    terms, slopes = outcomes.terms(log_q.clamp(min=FLOOR), log_p)
    # A softmax moves all classes against those whose log-probability is asked for
    gradient = (logits - lse).exp_().mul_(-slopes.sum(-1, keepdim=True))
    gradient.addcmul_(others.sub_(of_others).exp_(), slopes[:, -1:])
    return terms.sum(-1), gradient.scatter_add_(1, target.indices, slopes[:, :-1])


def _spread(logits: Tensor, target: SparseTarget, outcomes: Outcomes) -> tuple[Tensor, Tensor]:
    """Return the same over all classes, those that are not known being equally likely."""
    known, tail = target.log_probs.to(logits.dtype), target.tail.to(logits.dtype)
    rest = target.classes - known.shape[1]
    even = (tail - math.log(max(rest, 1))).clamp(min=FLOOR).unsqueeze(1)
    log_p = even.expand_as(logits).scatter(1, target.indices, known.clamp(min=FLOOR))
    log_q = logits.log_softmax(-1)
    terms, slopes = outcomes.terms(log_q, log_p)
    return terms.sum(-1), slopes - log_q.exp() * slopes.sum(-1, keepdim=True)
