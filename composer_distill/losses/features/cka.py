"""CKA: centred kernel alignment with a linear kernel (arXiv 1905.00414)."""

from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import as_samples
from composer_distill.losses.precision import full_precision


def cka(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return one minus the centred kernel alignment; see :class:`CKA`."""
    s, t = as_samples(student, teacher, mask)
    if len(s) < 2:  # one sample lies on its own mean: there is nothing to align
        return s.sum() * 0.0
    with full_precision(s):
        ours, theirs = _centred(s), _centred(t)
    # Where all samples are equal on one side there is no alignment; the root of 0 has no gradient
    lengths = [x.square().sum().clamp(min=1e-30).sqrt() for x in (ours, theirs)]
    return 1.0 - (ours * theirs).sum() / (lengths[0] * lengths[1])


def _centred(rows: Tensor) -> Tensor:
    """Return the products of all rows, their mean taken off, at a scale of about 1: ``(B, B)``."""
    rows = rows - rows.mean(0)
    # CKA has no scale, so that none must overflow, nor vanish below the rounding of 1
    rows = rows / rows.detach().abs().amax().clamp(min=1e-30)
    return rows @ rows.T


class CKA(FeatureLoss):
    """CKA: one minus the alignment of the two sides' products of samples.

    ``1 - ||Y^T X||_F^2 / (||X^T X||_F ||Y^T Y||_F)``, with one flattened sample a row and columns
    centred. It does not see an orthogonal map, a shift or a common factor; widths may differ
    without a projector. It is computed from the products of samples, ``(B, B)``.

    It relates the samples of a call: over microbatches it is not the batch's value. Few samples of
    great width are all alike to it: give it more samples than a handful.

    Shape:
        - student: ``(B, ...)``; teacher: ``(B, ...)``; flattened to one row a sample.
        - mask: ``(B)`` or more of the first axes; a padded token counts as zeros.
        - output: a scalar between 0 and 1; 0 for fewer than two samples.

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, arXiv 1905.00414.

    Example:
        >>> import torch
        >>> student = torch.tensor([[1.0], [-1.0], [0.0]])
        >>> CKA()(student, -3 * student), CKA()(student, student**2)
        (tensor(0.), tensor(1.))
    """

    function = staticmethod(cka)
    relates_samples = True
