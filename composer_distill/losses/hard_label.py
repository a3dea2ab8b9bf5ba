"""Cross-entropy with the teacher's first choice as the label (arXiv 2012.12877)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.functional import FunctionalLoss
from composer_distill.losses.rows import FLOOR, lay_out


def hard_label(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return the cross-entropy with the teacher's most likely class; see :class:`HardLabel`."""
    rows = lay_out(student, teacher, mask, dim, reduction)
    highest, labels = rows.teacher.max(-1)
    values = F.cross_entropy(rows.student.clamp(min=FLOOR), labels, reduction="none")
    return rows.reduce(torch.where(highest.isnan(), highest, values))  # a NaN is no class to learn


class HardLabel(FunctionalLoss):
    """Cross-entropy of the student with the class that the teacher finds most likely.

    ``-log softmax(student)_y`` in nats, with ``y = argmax(teacher)``; of equal logits the first.
    It is not 0 where student and teacher agree: only certainty makes it 0. DeiT found it better
    than soft labels for its vision transformers, with a token and a head of its own and half of
    the loss. It has no temperature and no factor T^2.

    Args:
        dim: The class axis.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``.

    Reference:
        Touvron et al., Training data-efficient image transformers, arXiv 2012.12877.

    Example:
        >>> import torch
        >>> HardLabel()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]))  # ln 2
        tensor(0.6931)
    """

    softmax = True
    function = staticmethod(hard_label)
