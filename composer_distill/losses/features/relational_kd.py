"""RKD: distances and angles between samples (arXiv 1904.05068)."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from composer_distill.losses.checks import check_number
from composer_distill.losses.features.base import FeatureLoss
from composer_distill.losses.features.chunks import sum_in_chunks
from composer_distill.losses.features.inputs import as_samples, unit
from composer_distill.losses.precision import full_precision


def relational_kd(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    distance: float = 25.0,
    angle: float = 50.0,
) -> Tensor:
    """Return the Huber loss of distances and of angles; see :class:`RelationalKD`."""
    s, t = as_samples(student, teacher, mask)
    value = s.sum() * 0.0
    with full_precision(s):
        if distance:
            value = value + distance * _of_distances(s, t)
        if angle:
            value = value + angle * _of_angles(s, t)
    return value


def _of_distances(s: Tensor, t: Tensor) -> Tensor:
    ours, theirs = _relative_distances(s), _relative_distances(t)
    return F.smooth_l1_loss(ours, theirs, reduction="sum") / max(len(s), 1) ** 2


def _relative_distances(rows: Tensor) -> Tensor:
    """Return distances between all rows over the mean of those between two rows."""
    # Differences, not products of rows: near samples would be lost in their rounding
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    pairs = len(rows) * (len(rows) - 1)
    return distances / (distances.sum() / max(pairs, 1)).clamp(min=1e-12)


def _of_angles(s: Tensor, t: Tensor) -> Tensor:
    entries = len(s) * (len(s) + max(s.shape[1], t.shape[1]))
    total = sum_in_chunks(partial(_angles_at, whole=(s, t)), (s, t), entries)
    return total / max(len(s), 1) ** 3


def _angles_at(s: Tensor, t: Tensor, *, whole: tuple[Tensor, Tensor]) -> Tensor:
    """Return the sum over triplets whose vertex is one of the rows of ``s`` and ``t``."""
    ours, theirs = (_cosines(x, rows) for x, rows in zip((s, t), whole, strict=True))
    return F.smooth_l1_loss(ours, theirs, reduction="sum")


def _cosines(vertices: Tensor, rows: Tensor) -> Tensor:
    """Return the cosines of the angles at each vertex between any two rows: ``(V, B, B)``."""
    sides = unit(rows[None, :, :] - vertices[:, None, :])
    return sides @ sides.transpose(1, 2)


class RelationalKD(FeatureLoss):
    """RKD: distances between two samples, and angles between three.

    ``distance * huber(d_s, d_t) + angle * huber(a_s, a_t)``. d is the distance of two samples over
    the mean distance of the batch's pairs, a the cosine of the angle at one sample between two
    others; Huber's loss turns at 1, and is a mean over all B^2 pairs and B^3 triplets, those of a
    sample with itself included, as in the authors' code. It does not see a common shift or scale,
    nor an orthogonal map; widths may differ.

    It relates the samples of a call: over microbatches it is not the batch's value. The angles
    need ``B^2 (B + D)`` operations' worth of memory; above 2^25 entries they are made a few
    vertices at a time, and again in backward.

    Args:
        distance: Weight of the distances.
        angle: Weight of the angles. The paper uses 25 and 50 for classification, 1 and 2 for metric
            learning.

    Shape:
        - student: ``(B, ...)``; teacher: ``(B, ...)``; flattened to one row a sample.
        - mask: ``(B)`` or more of the first axes; a padded token counts as zeros.
        - output: a scalar.

    Raises:
        ValueError: If a weight is not finite, or both are 0.

    Reference:
        Park et al., Relational Knowledge Distillation, arXiv 1904.05068.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0], [1.0], [3.0]])
        >>> loss = RelationalKD()
        >>> loss(student, 2 * student + 1), loss(student, student**2) > 0
        (tensor(0.), tensor(True))
    """

    function = staticmethod(relational_kd)
    relates_samples = True

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        remedy = "The paper uses 25 and 50 for classification."
        self.distance = check_number("distance", distance, remedy=remedy)
        self.angle = check_number("angle", angle, remedy=remedy)
        if self.distance == self.angle == 0.0:
            raise ValueError(f"distance and angle are both 0. {remedy}")
