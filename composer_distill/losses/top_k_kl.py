"""KL divergence on the teacher's k most likely classes."""

from typing import Literal, get_args

from torch import Tensor

from composer_distill.losses.base import Schedule
from composer_distill.losses.checks import check_temperature
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.rows import FLOOR, lay_out
from composer_distill.losses.softened import Softened, soften

Tail = Literal["bucket", "renormalise"]


def top_k_kl(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    *,
    k: int,
    tail: Tail = "bucket",
    temperature: float = 1.0,
    dim: int = -1,
    reduction: str = "mean",
) -> Tensor:
    """Return T^2 times the KL divergence on the teacher's k likeliest classes.

    See :class:`TopKKL`.
    """
    temperature = check_temperature(temperature)
    _check(k, tail)
    rows = lay_out(student, teacher, mask, dim, reduction)
    if k > student.shape[dim]:
        raise ValueError(
            f"k must be at most the {student.shape[dim]} classes of the logits, got {k}. "
            "Use KLDivergence for all classes."
        )
    q, p = soften(rows.student, temperature), soften(rows.teacher, temperature)
    ids = p.logits.topk(k, dim=-1).indices
    log_q, log_p = (x.logits.gather(-1, ids) for x in (q, p))
    if tail == "bucket":
        values = (log_p.exp() * (log_p - log_q)).sum(-1)
        log_r, log_t = _log_tail(q, ids), _log_tail(p, ids)
        values = values + log_t.exp() * (log_t - log_r)
    else:
        log_p = log_p.log_softmax(-1)
        values = (log_p.exp() * (log_p - log_q)).sum(-1)
    return rows.reduce_divergence(temperature**2 * values)


def _log_tail(softened: Softened, ids: Tensor) -> Tensor:
    """Return the log-probability of all classes but ``ids``, without cancellation."""
    rest = softened.logits.scatter(-1, ids, FLOOR)
    return rest.logsumexp(-1)


def _check(k: int, tail: str) -> None:
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an integer, got {k!r}. 50 to 100 keep most of the divergence.")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}. 50 to 100 keep most of the divergence.")
    if tail not in get_args(Tail):
        raise ValueError(
            f"tail must be 'bucket' or 'renormalise', got {tail!r}. Use 'bucket' for a divergence."
        )


class TopKKL(TemperedLoss):
    """Forward KL on the k classes that the teacher finds most likely.

    ``T^2 * KL`` in nats, where the student's probabilities are always those among all C classes.

    - ``tail='bucket'``: over k + 1 outcomes, the last of which is "any other class". It is a true
      divergence: 0 where student and teacher agree, never above the full KL of the same
      temperature (:class:`KLDivergence` has 4 where none is given), and equal to it at k = C. At
      k = 50 it recovers most of what the full divergence gives.
    - ``tail='renormalise'``: the teacher's k probabilities are scaled up to 1. At agreement it is
      ``-log`` of their sum and not 0, and its minimum gives the tail no probability at all: with
      k = 12 a language model ends worse than with no distillation. It is here to be compared with.

    Sums over the k probabilities alone, without either, are no divergence and can be negative.

    Args:
        k: How many classes, from 1 to C.
        tail: What becomes of the other classes.
        temperature: T, a number or a schedule. The value is multiplied by T^2.
        dim: The class axis.
        reduction: As in :class:`KLDivergence`, but ``'none'`` gives one value for each position.

    Shape:
        Those of :class:`KLDivergence`, but for ``'none'`` the output is ``(...)``.

    Raises:
        ValueError: If k is below 1 or above C, or tail is unknown.

    Reference:
        Anshumann et al., Sparse Logit Sampling, arXiv 2503.16870, on the bias of the truncations.

    Example:
        >>> import torch
        >>> z = torch.tensor([[3.0, 1.0, 0.0]])
        >>> TopKKL(2)(z, z), TopKKL(2, tail="renormalise")(z, z)
        (tensor(0.), tensor(0.0429))
    """

    function = staticmethod(top_k_kl)

    def __init__(
        self,
        k: int,
        tail: Tail = "bucket",
        temperature: float | Schedule = 1.0,
        dim: int = -1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(temperature, dim, reduction)
        _check(k, tail)
        self.k = k
        self.tail: Tail = tail
