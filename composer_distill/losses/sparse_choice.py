"""Which losses can be computed from a teacher of whom few classes are known, and how."""

from typing import get_args

from torch import Tensor

from composer_distill.losses.base import DistillationLoss, WeightedSum
from composer_distill.losses.checks import check_temperature
from composer_distill.losses.jensen_shannon import JensenShannonDivergence
from composer_distill.losses.kl_divergence import KLDivergence
from composer_distill.losses.reverse_kl_divergence import ReverseKLDivergence
from composer_distill.losses.soft_cross_entropy import SoftCrossEntropy
from composer_distill.losses.sparse import (
    Outcomes,
    SparseTail,
    SparseTarget,
    cross_terms,
    forward_terms,
    mixture_terms,
    reverse_terms,
    sparse_distance,
)
from composer_distill.losses.top_k_kl import TopKKL

_FROM_SAMPLES = "KLDivergence, SoftCrossEntropy"
_FROM_TOP_K = f"{_FROM_SAMPLES}, TopKKL, JensenShannonDivergence"
_WITH_TAIL = f"{_FROM_TOP_K}, ReverseKLDivergence"


def sparse_parts(
    loss: DistillationLoss, student: Tensor, target: SparseTarget, tail: SparseTail
) -> dict[str, Tensor]:
    """Return what ``loss.parts`` would, from what is known of the teacher.

    Args:
        loss: The loss, or a sum of losses.
        student: The student's logits.
        target: What is known of the teacher.
        tail: What becomes of the classes that are not known.

    Shape:
        - student: ``(N, C)``.

    Raises:
        ValueError: If the loss has another temperature than the target.
    """
    members = [member for _, member in loss.terms] if isinstance(loss, WeightedSum) else [loss]
    names: list[str] = []
    values: list[Tensor] = []
    for member in members:
        _check_temperature(member, target.temperature)
        same = sum(earlier.name == member.name for earlier in members[: len(names)])
        names.append(f"{member.name}_{same + 1}" if same else member.name)
        known = target.first(member.k) if isinstance(member, TopKKL) else target
        outcomes = outcomes_of(member, tail, sampled=target.sampled)
        values.append(sparse_distance(student, known, outcomes))
    return dict(zip(names, values, strict=True))


def check_sparse(loss: object, count: int, tail: str, *, sampled: bool) -> None:
    """Refuse a loss that can't be computed from what is known of a teacher.

    Args:
        loss: The ``kd_loss_fn``.
        count: How many classes are known.
        tail: What becomes of the others.
        sampled: Whether they were drawn.

    Raises:
        ValueError: Naming the losses that can.
    """
    if tail not in get_args(SparseTail):
        known = ", ".join(map(repr, get_args(SparseTail)))
        raise ValueError(f"tail must be one of {known}, got {tail!r}. 'bucket' is a divergence.")
    members = [member for _, member in loss.terms] if isinstance(loss, WeightedSum) else [loss]
    for member in members:
        if not isinstance(member, DistillationLoss):
            raise ValueError(_refusal(member, tail, sampled))
        outcomes_of(member, tail, sampled=sampled)
        if member.dim != -1 or member.reduction != "mean":
            raise ValueError(
                f"kd_loss_fn ({member!r}): of cached answers only few classes are kept, which "
                "needs dim=-1 and reduction='mean'. Use these, or a cache of whole logits."
            )
        if isinstance(member, TopKKL) and member.k > count:
            raise ValueError(
                f"kd_loss_fn ({member!r}) reads {member.k} classes, and {count} are kept. Use "
                f"k={count} or less, or write a cache with top_k={member.k}."
            )


def outcomes_of(loss: object, tail: SparseTail | str, *, sampled: bool) -> Outcomes:
    """Return how a loss is computed; raise ValueError where it can't be."""
    whole: SparseTail = "renormalise" if sampled else tail  # pyright: ignore[reportAssignmentType]
    kind = type(loss)
    if kind is SoftCrossEntropy:
        return Outcomes(cross_terms, whole)
    if kind is KLDivergence and sampled:
        return Outcomes(cross_terms, whole, entropy=True)
    if kind is KLDivergence:
        return Outcomes(forward_terms, whole)
    if isinstance(loss, TopKKL) and not sampled:
        return Outcomes(forward_terms, loss.tail if tail == "bucket" else whole)
    if isinstance(loss, JensenShannonDivergence) and not sampled:
        beta, rest = loss.beta, whole
        if beta in (0.0, 1.0):
            reverse = beta == 1.0
            return outcomes_of(
                ReverseKLDivergence() if reverse else KLDivergence(), rest, sampled=False
            )
        return Outcomes(mixture_terms(beta, 1 / (beta * (1 - beta)) if loss.scaled else 1.0), rest)
    if kind is ReverseKLDivergence and not sampled and whole != "renormalise":
        return Outcomes(reverse_terms, whole)
    raise ValueError(_refusal(loss, tail, sampled))


def _refusal(loss: object, tail: str, sampled: bool) -> str:
    if sampled:
        kept, can = "draws from the teacher's distribution are", _FROM_SAMPLES
    elif tail == "renormalise":
        kept, can = "the likeliest classes alone, with tail='renormalise', are", _FROM_TOP_K
    else:
        kept, can = "the likeliest classes and the rest's probability are", _WITH_TAIL
    name = getattr(loss, "__name__", type(loss).__name__)
    return (
        f"kd_loss_fn ({name}) can't be computed where {kept} kept. Those that can are {can}. "
        "Use one of them, or write a cache of whole logits."
    )


def _check_temperature(loss: DistillationLoss, kept: float) -> None:
    found = check_temperature(getattr(loss, "temperature", kept))
    if found != kept:
        raise ValueError(
            f"kd_loss_fn ({type(loss).__name__}) has temperature {found:g}, and the cached answers "
            f"were kept at {kept:g}: of few classes another can't be made. Use "
            f"temperature={kept:g}, or write a cache with temperature={found:g}."
        )
