"""Logit standardisation around any loss (arXiv 2403.01427)."""

from typing import Any

import torch
from torch import Tensor

from composer_distill.losses.base import DistillationLoss
from composer_distill.losses.checks import check_dim, check_inputs
from composer_distill.losses.precision import compute_dtype


def standardize(logits: Tensor, dim: int = -1, eps: float = 1e-7) -> Tensor:
    """Return logits with mean 0 and standard deviation 1 over the classes.

    Args:
        logits: Logits of any shape. Classes at minus infinity are left out of the statistics and
            stay where they are.
        dim: The class axis.
        eps: Added to the standard deviation.
    """
    z = logits.to(compute_dtype(logits))
    finite = z.isfinite()
    number = finite.sum(dim, keepdim=True)
    centred = torch.where(finite, z, 0.0)
    centred = centred - centred.sum(dim, keepdim=True) / number.clamp(min=1)
    centred = torch.where(finite, centred, 0.0)
    variance = centred.square().sum(dim, keepdim=True) / (number - 1).clamp(min=1)
    # Equal logits are all 0 whatever divides them; eps alone would give gradients of 1e7, which
    # float16 cannot hold, and the root of 0 infinite ones.
    varies = variance > 0
    deviation = torch.where(varies, variance, 1.0).sqrt()
    return torch.where(finite, centred / torch.where(varies, eps + deviation, 1.0), z)


class StandardizedLogits(DistillationLoss):
    """Standardise the logits of both, then apply a loss.

    ``z <- (z - mean(z)) / (1e-7 + std(z))`` over the classes of each position, for student and
    teacher alike (the standard deviation with C - 1 in the denominator, as in the authors' code):
    the student need not learn the teacher's scale, only its shape. The inner loss's temperature
    then divides logits of unit spread. It holds both standardised logits in float32, two tensors
    more than the loss alone.

    Args:
        loss: What to apply; the authors take ``KLDivergence(temperature=2.0)`` with weight 9 and
            the task's loss with weight 0.1. Its ``dim`` is the axis of the statistics.

    Shape:
        - student, teacher, mask, labels, output: as the inner loss.

    Raises:
        TypeError: If ``loss`` is no DistillationLoss.

    Reference:
        Sun et al., Logit Standardization in Knowledge Distillation, arXiv 2403.01427.

    Example:
        >>> import torch
        >>> from composer_distill.losses import KLDivergence
        >>> loss = StandardizedLogits(KLDivergence(temperature=2.0))
        >>> z = torch.tensor([[3.0, 1.0, -1.0]])
        >>> loss(5.0 * z + 2.0, z).round(decimals=6)
        tensor(0.)
    """

    def __init__(self, loss: DistillationLoss) -> None:
        if not isinstance(loss, DistillationLoss):
            raise TypeError(
                f"loss must be a DistillationLoss, got {loss!r}. "
                "Use for example KLDivergence(temperature=2.0)."
            )
        super().__init__(loss.dim, loss.reduction)
        self.loss = loss

    @property
    def needs_labels(self) -> bool:  # type: ignore[reportIncompatibleVariableOverride]
        """Whether the inner loss needs labels."""
        return self.loss.needs_labels

    def compute(
        self, student: Tensor, teacher: Tensor, mask: Tensor | None, labels: Tensor | None
    ) -> Tensor:
        """Return the inner loss of the standardised logits."""
        check_inputs(student, teacher, mask, check_dim(self.dim))
        extra: dict[str, Any] = {"labels": labels} if self.needs_labels else {}
        s, t = standardize(student, self.dim), standardize(teacher.detach(), self.dim)
        return self.loss(s, t, mask=mask, **extra)
