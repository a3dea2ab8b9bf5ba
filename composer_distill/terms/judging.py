"""Positions that count only where the teacher's answer is good: judged once it has answered."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from torch import Tensor

from composer_distill.losses import BernoulliKL, FusedLinearKL
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.terms.narrowing import check_is_mean, narrowed

_Good = Callable[[Tensor, Tensor | None, int], Tensor]


@dataclass(frozen=True)
class TeacherJudge:
    """Says at which positions a teacher's answer is good enough to learn from.

    As ``Distillation(mask_fn=...)``. A position where it is not counts as one where the student
    already agrees: it adds 0 to the mean over all positions that count. So microbatches weigh as
    they do without a judge, and the loss falls with the share that is left out; what counts is
    logged as ``distillation/judged_good``. Several teachers are judged by their combined target.

    Args:
        name: What it is called.
        good: From a target's logits, the labels and the class axis to one value a position.
        needs_labels: Whether it reads labels.
    """

    name: str
    good: _Good
    needs_labels: bool = False

    def __repr__(self) -> str:
        return self.name

    def __call__(self, target: Tensor, labels: Tensor | None = None, axis: int = -1) -> Tensor:
        """Return True where the answer is good: a position each, of logits with a class axis."""
        return self.good(target, labels, axis)

    def judge(
        self, microbatch: Microbatch, target: Tensor
    ) -> tuple[Microbatch, Tensor, Tensor | float]:
        """Return the microbatch and its target where the teacher is good, and the share of those.

        Args:
            microbatch: What the student saw and answered.
            target: The teachers' target, in the shape of ``microbatch.compared``.

        Shape:
            - target: ``(K, C)``, or that of the student's logits.

        Raises:
            ValueError: If labels are needed and the batch has none that fit.
        """
        if microbatch.empty:
            return microbatch, target, 0.0
        compared = microbatch.compared
        if self.needs_labels and compared.labels is None:
            raise ValueError(
                f"mask_fn={self.name} needs one class index for each position, but the batch holds "
                "none: they are its second element or its 'labels'. Use teacher_confident."
            )
        return narrowed(microbatch, target, self(target, compared.labels, compared.axis))


def _is_right(target: Tensor, labels: Tensor | None, axis: int) -> Tensor:
    return target.argmax(axis) == labels


teacher_correct = TeacherJudge("teacher_correct", _is_right, needs_labels=True)
"""Positions at which the teacher puts the label first; those without a label do not count."""


def teacher_confident(probability: float) -> TeacherJudge:
    """Return the positions at which the teacher's likeliest class has more than a probability.

    Args:
        probability: In (0, 1), of the softmax at temperature 1.

    Raises:
        ValueError: If it is no number between 0 and 1.

    Example:
        >>> teacher_confident(0.5)
        teacher_confident(0.5)
    """
    number = isinstance(probability, Real) and not isinstance(probability, bool)
    if not number or not 0.0 < probability < 1.0:
        raise ValueError(f"probability must lie between 0 and 1, got {probability!r}. Use 0.5.")
    least = math.log(probability)

    def is_sure(target: Tensor, labels: Tensor | None, axis: int) -> Tensor:
        top = target.float().amax(axis) - target.float().logsumexp(axis)
        return top > least

    return TeacherJudge(f"teacher_confident({probability!r})", is_sure)


def check_mask_fn(mask_fn: Any) -> Any:
    """Return ``mask_fn``; raise TypeError where it can be none."""
    uncalled = mask_fn is teacher_confident
    if uncalled or not (mask_fn is None or callable(mask_fn)):
        name = "teacher_confident" if uncalled else type(mask_fn).__name__
        raise TypeError(
            f"mask_fn must be callable as (batch, outputs) or None, got {name}. Use "
            "loss_positions, attended_positions, all_positions or teacher_confident(0.5)."
        )
    return mask_fn


def check_judged(judge: TeacherJudge | None, kd_loss_fn: Any) -> None:
    """Refuse a judge where no answer is ever whole, classes are independent, or there is no mean.

    Raises:
        ValueError: If there is one.
    """
    if judge is None:
        return
    if isinstance(kd_loss_fn, FusedLinearKL):
        raise ValueError(
            f"mask_fn={judge} judges a teacher's logits, which FusedLinearKL never has. "
            "Use KLDivergence."
        )
    if isinstance(kd_loss_fn, BernoulliKL):
        raise ValueError(
            f"mask_fn={judge} judges by the likeliest of classes that exclude each other, and "
            "BernoulliKL's do not. Leave mask_fn out, or pass KLDivergence if they do."
        )
    check_is_mean(kd_loss_fn, f"mask_fn={judge}")
