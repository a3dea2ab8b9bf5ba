"""What every distillation loss shares: checks, mask and reduction, written once."""

import torch
from torch import Tensor, nn


class DistillationLoss(nn.Module):
    """A loss called as ``loss(student, teacher, mask=None)``."""

    def forward(self, student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the distance of ``student`` from ``teacher``."""
        raise NotImplementedError


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type to compute in: at least float32."""
    return torch.promote_types(dtype, torch.float32)
