"""A target of which each sample is answered by its own teachers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from composer.core import State
from torch import Tensor

from composer_distill.teachers.microbatch import Microbatch
from composer_distill.terms.combining import by_rows
from composer_distill.terms.narrowing import narrowed
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.routing import Routing

Hear = Callable[[int, Tensor, Microbatch, float], Tensor]
"""From a teacher's index, raw logits and samples, and their share of the positions that count, to
what is compared of the logits."""


class Asked(NamedTuple):
    """What was answered of a microbatch.

    Attributes:
        microbatch: The positions that have a teacher.
        target: Their target, in the shape of ``microbatch.compared``.
        share: Of all positions that count, how many these are; None where all are.
    """

    microbatch: Microbatch
    target: Tensor
    share: Tensor | None = None


@dataclass(frozen=True)
class Part:
    """What one teacher answers of a microbatch.

    Attributes:
        index: Which teacher.
        samples: Its samples; none of whose positions counts where it has none.
        any: Whether it has any.
        rows: Which entries of the first axis of what is compared are its own.
        shares: Its share of the target at each.
    """

    index: int
    samples: Microbatch
    any: bool
    rows: Tensor
    shares: Tensor


def ask_routed(
    panel: TeacherPanel,
    routing: Routing,
    drawn: Sequence[tuple[int, float]],
    microbatch: Microbatch,
    state: State,
    temperature: float,
    hear: Hear,
) -> Asked:
    """Ask each teacher about its own samples, and combine what they say of each.

    A teacher without samples is not asked, unless it is cut over the ranks, where every rank must
    take part: then about one sample, whose answer is dropped.

    Args:
        panel: The teachers.
        routing: Which samples each answers.
        drawn: ``(index, share)`` of the teachers that answer now.
        microbatch: What the student saw and answered.
        state: The Trainer's state.
        temperature: At which probabilities are mixed.
        hear: Takes each answer, and is called for each teacher, whether it has samples or not.
    """
    rows = routing.rows(microbatch.view, len(microbatch.logits))
    parts = parts_of(microbatch, [(index, share, rows[index]) for index, share in drawn])
    total = positions(microbatch)

    def answers() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for part in parts:
            source = panel.sources[part.index]
            answer = torch.zeros_like(part.samples.logits)
            if part.any or getattr(source, "sharded", False):
                found = panel.timed(source, source.target, part.samples, state)
                answer = found if part.any else answer
            share = positions(part.samples) / max(total, 1)
            heard = hear(part.index, answer, part.samples, share)
            if len(part.rows):
                yield part.rows, part.shares, heard

    like, axis = microbatch.compared.logits.detach(), microbatch.compared.axis
    mixed = panel.combine == "probabilities"
    target = by_rows(answers(), like, temperature if mixed else None, axis)
    if microbatch.empty:
        return Asked(microbatch, like, like.new_zeros(()))
    answered = torch.stack([rows[index] for index, _ in drawn]).any(0)
    return Asked(*_answered(microbatch, target, answered.to(like.device), int(answered.sum())))


def _answered(
    microbatch: Microbatch, target: Tensor, answered: Tensor, count: int
) -> tuple[Microbatch, Tensor, Tensor]:
    """Return the samples that have a teacher, ``count`` of them, their target and their share."""
    samples = len(answered)
    if count == samples:
        return microbatch, target, target.new_ones(())
    if microbatch.mask is None and count:  # in their own layout
        labels = microbatch.labels
        fewer = replace(
            microbatch,
            logits=microbatch.logits[answered],
            labels=None if labels is None else labels[answered],
        )
        return fewer, target[answered], target.new_full((), count / samples)
    good = answered[microbatch.first_axis]
    shape = target.select(microbatch.compared.axis, 0).shape
    good = good.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return narrowed(microbatch, target, good)


def parts_of(microbatch: Microbatch, routed: Sequence[tuple[int, float, Tensor]]) -> list[Part]:
    """Return what each teacher answers, its shares those among the teachers of each sample.

    Args:
        microbatch: What the student saw and answered.
        routed: ``(index, share, rows)`` of each teacher, with rows as :class:`.Routing` gives them.
    """
    total = sum((share * rows.double() for _, share, rows in routed), torch.zeros(()).double())
    first = microbatch.first_axis
    dtype = torch.promote_types(microbatch.logits.dtype, torch.float32)
    parts = []
    for index, share, own in routed:
        any_of_it = bool(own.any())
        if bool(own.all()):
            samples = replace(microbatch, logits=microbatch.logits.detach())
        elif any_of_it:
            samples = microbatch.take(own.nonzero().squeeze(1))
        else:
            samples = _nothing(microbatch)
        rows = own.to(first.device)[first].nonzero().squeeze(1)
        shares = (share / total).to(dtype).to(first.device)[first[rows]]
        parts.append(Part(index, samples, any_of_it, rows, shares))
    return parts


def positions(microbatch: Microbatch) -> int:
    """Return how many positions of a microbatch count."""
    if microbatch.count is not None:
        return microbatch.count
    return microbatch.logits.numel() // microbatch.logits.shape[microbatch.axis]


def _nothing(microbatch: Microbatch) -> Microbatch:
    """Return the first sample, of which no position counts."""
    one = microbatch.take(torch.tensor([0]))
    nowhere = torch.zeros_like(one.logits.select(one.axis, 0), dtype=torch.bool)
    return replace(one, mask=nowhere)
