"""What a batch tells about distillation, on rows that are computed already."""

import torch
from torch import Tensor


def top1_agreement(student: Tensor, teacher: Tensor, axis: int = -1) -> Tensor | None:
    """Return the share of positions where student and teacher put the same class first.

    Args:
        student: The student's logits.
        teacher: The teacher's logits.
        axis: The class axis.

    Shape:
        - student, teacher: any, equal.
        - result: scalar.

    Returns:
        The share in [0, 1], or None for outputs that are no classification: fewer than two axes or
        two classes.

    Example:
        >>> student = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> top1_agreement(student, torch.tensor([[9.0, 0.0], [9.0, 0.0]]))
        tensor(0.5000)
    """
    if student.ndim < 2 or student.shape[axis] < 2 or not student.numel():
        return None
    with torch.no_grad():
        return (student.max(axis).indices == teacher.max(axis).indices).float().mean()
