"""PKT: how likely samples are neighbours (arXiv 1803.10837)."""

from torch import Tensor

from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.inputs import as_samples, unit
from composer_distill.losses.precision import full_precision

_EPS = 1e-7  # as in the code: opposite samples have probability 0


def probabilistic_transfer(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return KL(teacher || student) of neighbourhoods; see :class:`ProbabilisticTransfer`."""
    s, t = as_samples(student, teacher, mask)
    with full_precision(s):
        q, p = _neighbours(s), _neighbours(t)
    terms = p * ((p + _EPS) / (q + _EPS)).log()
    return terms.sum() / max(len(s), 1) ** 2


def _neighbours(rows: Tensor) -> Tensor:
    """Return each row's similarities to all rows, as probabilities: ``(B, B)``."""
    of_length_1 = unit(rows)
    similarity = (1.0 + of_length_1 @ of_length_1.T).clamp(min=0.0) / 2.0
    return similarity / similarity.sum(1, keepdim=True)


class ProbabilisticTransfer(FeatureLoss):
    """PKT: the divergence of the probabilities that one sample is another's neighbour.

    Row i holds ``(1 + cos(x_i, x_j)) / 2`` over their sum; the value is
    ``sum p log(p / q) / B^2``, teacher's p and student's q, the scale of RepDistiller's code, whose
    weight is 30000: the sum over a row, divided by B once more than a mean over rows. Its code and
    this count a sample as its own neighbour. Widths may differ.

    It relates the samples of a call: over microbatches it is not the batch's value.

    Shape:
        - student: ``(B, ...)``; teacher: ``(B, ...)``; flattened to one row a sample.
        - mask: ``(B)`` or more of the first axes; a padded token counts as zeros.
        - output: a scalar.

    Reference:
        Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer,
        arXiv 1803.10837.

    Example:
        >>> import torch
        >>> loss, student = ProbabilisticTransfer(), torch.eye(2)
        >>> loss(student, 5 * student), loss(student, torch.ones(2, 2))
        (tensor(0.), tensor(0.0294))
    """

    function = staticmethod(probabilistic_transfer)
    relates_samples = True
