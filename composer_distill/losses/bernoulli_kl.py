"""Forward Kullback-Leibler divergence of independent labels (arXiv 2308.06453)."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, Softened


def _terms(student: Softened, teacher: Softened) -> Tensor:
    # A label and its opposite have one divergence: told of the outcome that the teacher finds
    # likelier, neither logarithm is far from 0 near agreement, so that their digits are kept.
    sign = torch.where(teacher.logits < 0, -1.0, 1.0)
    s, t = sign * student.logits, sign * teacher.logits
    return logsigmoid(t) - logsigmoid(s) + (-t).sigmoid() * (s - t)


def _rows(student: Softened, teacher: Softened, wanted: bool) -> tuple[Tensor, Tensor | None]:
    return _terms(student, teacher), student.probs.sub_(teacher.probs) if wanted else None


BERNOULLI_KL = Formula(_terms, _rows, independent=True)


def bernoulli_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return T^2 times the sum of each label's own divergence; see :class:`BernoulliKL`."""
    return divergence(BERNOULLI_KL, student, teacher, mask, temperature, dim, reduction)


class BernoulliKL(TemperedLoss):
    """Forward KL of labels that do not exclude each other, each with a sigmoid of its own.

    ``T^2 * sum_c [p_c ln(p_c / q_c) + (1 - p_c) ln((1 - p_c) / (1 - q_c))]`` in nats, with
    ``p = sigmoid(teacher / T)`` and ``q = sigmoid(student / T)``: summed over the labels and
    averaged over the positions. It is for models that are trained with binary cross-entropy: one
    logit for a binary answer, several labels at a time, and either of them for each pixel. A
    softmax over such logits would let the labels compete, and over a single one it is always 1.

    Args:
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The axis of the labels, of length 1 for a binary answer.
        reduction: As in :class:`KLDivergence`. ``'mean'`` averages over the positions and not over
            the labels, as torch's ``binary_cross_entropy_with_logits`` does: divide the weight by
            the number of labels to compare with it.

    Shape:
        Those of :class:`KLDivergence`, with labels in place of classes; so are the errors.

    Reference:
        Yang et al., Multi-Label Knowledge Distillation, arXiv 2308.06453, section 3.1.

    Example:
        >>> import torch
        >>> student, teacher = torch.tensor([[0.0]]), torch.tensor([[3.0]]).log()
        >>> BernoulliKL()(student, teacher)  # of (3/4, 1/4) from (1/2, 1/2)
        tensor(0.1308)
    """

    softmax = False
    function = staticmethod(bernoulli_kl)
