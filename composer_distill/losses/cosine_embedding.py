"""Cosine distance of student and teacher (arXiv 1910.01108)."""

import torch
from torch import Tensor

from composer_distill.losses.features.inputs import unit
from composer_distill.losses.functional import FunctionalLoss
from composer_distill.losses.rows import lay_out

_EPS = 1e-12  # added to the square of a length, as torch.nn.CosineEmbeddingLoss does


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
    # Zeros count as of length 1: epsilon alone would make gradients of 1e6, too many for float16
    return rows.reduce_divergence(1.0 - (unit(s, epsilon=_EPS) * unit(t, epsilon=_EPS)).sum(-1))


class CosineEmbedding(FunctionalLoss):
    """Cosine distance: one minus the cosine of the angle between student and teacher.

    ``1 - <s, t> / (|s| |t|)``, between 0 and 2. Each length is ``sqrt(|x|^2 + 1e-12)``, as in
    ``torch.nn.CosineEmbeddingLoss``, so that no gradient exceeds 1e6. A vector of zeros counts as
    one of length 1, as in :class:`HiddenCosine`: its distance is 1, and its gradient ``-t / |t|``,
    where torch's is a million times that.

    It sees the direction only, neither length nor, on logits, temperature. DistilBERT uses it on
    the last hidden states, with weight 1 beside the divergence's 5 and the task's 2; give it hidden
    states of equal width as ``student`` and ``teacher``. It has no temperature and no factor T^2.

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
