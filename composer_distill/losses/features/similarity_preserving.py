"""SP: which samples are alike (arXiv 1907.09682)."""

from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import as_samples, unit
from composer_distill.losses.precision import full_precision


def similarity_preserving(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared difference of similarities; see :class:`SimilarityPreserving`."""
    s, t = as_samples(student, teacher, mask)
    with full_precision(s):
        ours, theirs = (unit(x @ x.T) for x in (s, t))
    return (ours - theirs).square().sum() / max(len(s), 1) ** 2


class SimilarityPreserving(FeatureLoss):
    """SP: the squared difference of the similarities between the samples of a batch.

    ``||G_s - G_t||_F^2 / B^2``, where G is ``Q Q^T`` with rows of length 1 and Q has one flattened
    sample a row. Widths and resolutions may differ. It does not see an orthogonal map of the
    features, nor a factor common to all samples.

    It relates the samples of a call: over microbatches it is not the batch's value.

    Shape:
        - student: ``(B, ...)``; teacher: ``(B, ...)``.
        - mask: ``(B)`` or more of the first axes; a padded token counts as zeros.
        - output: a scalar.

    Reference:
        Tung and Mori, Similarity-Preserving Knowledge Distillation, arXiv 1907.09682.

    Example:
        >>> import torch
        >>> loss, student = SimilarityPreserving(), torch.eye(2)
        >>> loss(student, torch.eye(2, 3)), loss(student, torch.ones(2, 1))
        (tensor(0.), tensor(0.2929))
    """

    function = staticmethod(similarity_preserving)
    relates_samples = True
