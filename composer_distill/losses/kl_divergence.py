"""Forward Kullback-Leibler divergence of softened distributions (arXiv 1503.02531)."""

import math

from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.base import DistillationLoss, compute_dtype


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float, dim: int = -1) -> Tensor:
    """Return ``T^2 KL(softmax(teacher/T) || softmax(student/T))`` as a mean over positions."""
    log_q = (student.to(compute_dtype(student.dtype)) / temperature).log_softmax(dim)
    log_p = (teacher.detach().to(compute_dtype(teacher.dtype)) / temperature).log_softmax(dim)
    return (
        F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim).mean() * temperature**2
    )


class KLDivergence(DistillationLoss):
    """Forward KL, a placeholder until the exact kernel lands."""

    def __init__(self, temperature: float = 4.0, dim: int = -1, reduction: str = "mean") -> None:
        super().__init__()
        if not (math.isfinite(temperature) and temperature > 0):
            raise ValueError(f"temperature must be positive and finite, got {temperature}.")
        self.temperature, self.dim, self.reduction = temperature, dim, reduction

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the divergence."""
        return kl_divergence(student, teacher, self.temperature, self.dim)
