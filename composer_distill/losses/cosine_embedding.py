"""Cosine distance of student and teacher (arXiv 1910.01108)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.functional import FunctionalLoss
from composer_distill.losses.rows import lay_out


def cosine_embedding(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return one minus the cosine of student and teacher; see :class:`CosineEmbedding`."""
    rows = lay_out(student, teacher, mask, dim, reduction, fewest=1)
    ruled_out = rows.student.isneginf() & rows.teacher.isneginf()
    s, t = (torch.where(ruled_out, 0.0, rows_of) for rows_of in (rows.student, rows.teacher))
    # Scaled to a largest entry of 1 first: the square of a large logit must not overflow.
    s, t = (x / x.detach().abs().amax(-1, keepdim=True).clamp(min=1e-12) for x in (s, t))
    return rows.reduce_divergence(1.0 - F.cosine_similarity(s, t, dim=-1))


class CosineEmbedding(FunctionalLoss):
    """Cosine distance: one minus the cosine of the angle between student and teacher.

    ``1 - <s, t> / (|s| |t|)``, between 0 and 2; 1 where either is zero everywhere. It sees the
    direction only, neither length nor, on logits, temperature. DistilBERT uses it on the last
    hidden states, with weight 1 beside the divergence's 5 and the task's 2; give it hidden states
    of equal width as ``student`` and ``teacher``. It has no temperature and no factor T^2.

    Args:
        dim: The axis of the vectors.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``.

    Reference:
        Sanh et al., DistilBERT, arXiv 1910.01108.

    Example:
        >>> import torch
        >>> CosineEmbedding()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(1.)
    """

    function = staticmethod(cosine_embedding)
