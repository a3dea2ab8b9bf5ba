"""What a batch tells about distillation, on logits that are computed already."""

import logging
import math

import torch
from torch import Tensor

from composer_distill.losses.kernel import told
from composer_distill.losses.kl_divergence import FORWARD_KL
from composer_distill.losses.precision import can_be_read
from composer_distill.losses.rows import as_rows
from composer_distill.losses.softened import lse_gap, soften_chunk, surplus

_log = logging.getLogger(__name__)

_CHUNK_ELEMENTS = 1 << 17  # fits in a core's cache at float32
_LOWEST = torch.finfo(torch.float32).min  # a finite ln 0: 0 times it is 0
_CHANCE_BATCHES = 5
_FEW = 1 << 14  # entries, below which torch's argmax is the fastest
_LOOKED_AT = 64  # rows
_CHANCE_RATIO = 0.98  # of ln(classes); the rest is sampling noise


def top1_agreement(student: Tensor, teacher: Tensor, axis: int = -1) -> Tensor | None:
    """Return the share of positions where student and teacher put the same class first.

    Args:
        student: The student's logits.
        teacher: The teacher's logits.
        axis: The class axis.

    Shape:
        - student, teacher: any, equal.
        - result: scalar.

    Returns:
        The share in [0, 1], or None for outputs that are no classification: fewer than two axes or
        two classes.

    Example:
        >>> student = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
        >>> top1_agreement(student, torch.tensor([[9.0, 0.0], [9.0, 0.0]]))
        tensor(0.5000)
    """
    if not is_classification(student, axis):
        return None
    if student.ndim == 2 and axis in (-1, 1):
        found = told(FORWARD_KL, student, teacher)
        if found is not None:
            return (found[1][0] == found[1][1]).mean(dtype=torch.float32)
    best, other = (_first_best(logits.detach(), axis) for logits in (student, teacher))
    return (best == other).mean(dtype=torch.float32)


def _first_best(logits: Tensor, axis: int) -> Tensor:
    """Return the class of the largest logit, the first of equal ones.

    On a CPU torch looks at one value after another, NumPy at several at once where they lie side by
    side; elsewhere it would copy all of them.
    """
    if logits.numel() < _FEW:
        return logits.argmax(axis)
    side_by_side = axis % logits.ndim == logits.ndim - 1 and logits.is_contiguous()
    known_to_numpy = type(logits) is Tensor and logits.dtype in (torch.float32, torch.float64)
    if side_by_side and known_to_numpy and can_be_read(logits):
        return torch.from_numpy(logits.numpy().argmax(-1))
    return logits.max(axis).indices


def is_classification(logits: Tensor, axis: int = -1) -> bool:
    """Return whether logits have classes to tell apart and positions to tell them for."""
    return logits.ndim >= 2 and logits.shape[axis] >= 2 and logits.numel() > 0


def divergence_and_entropies(
    student: Tensor, teacher: Tensor, axis: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far apart and how sure student and teacher are, as means over positions, in nats.

    Computed in float32 a few rows at a time, so that no second copy of the logits is ever held.

    Args:
        student: The student's logits.
        teacher: The teacher's logits.
        axis: The class axis.

    Shape:
        - student, teacher: any, equal.
        - results: scalars.

    Returns:
        The forward KL at temperature 1, the student's entropy and the teacher's entropy.

    Example:
        >>> logits = torch.zeros(2, 4)
        >>> [round(value.item(), 4) for value in divergence_and_entropies(logits, logits)]
        [0.0, 1.3863, 1.3863]
    """
    student, teacher = as_rows(student, axis), as_rows(teacher, axis)
    found = told(FORWARD_KL, student, teacher)
    if found is not None:
        kl, of_student, of_teacher = found[0].mean(-1).unbind()
        return kl, of_student, of_teacher
    student, teacher = student.detach(), teacher.detach()
    count, rows = len(student), max(1, _CHUNK_ELEMENTS // student.shape[1])
    chunks = [(student, teacher)]
    if count > rows:
        chunks = list(zip(student.split(rows), teacher.split(rows), strict=True))
    sums = [_sums(one, other) for one, other in chunks]
    kl, minus_student, minus_teacher = (
        parts[0] if len(parts) == 1 else torch.stack(parts).sum()
        for parts in zip(*sums, strict=True)
    )
    return kl.clamp(min=0.0) / count, minus_student / -count, minus_teacher / -count


def _sums(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sums over a few rows of the KL and of both negative entropies."""
    student, teacher = student.float(), teacher.float()
    if can_be_read(student):  # most logits are finite, and then nothing is to be filled in
        q, p = (
            soften_chunk(logits, logits.dtype, 1.0, floor=False, shift=True)
            for logits in (student, teacher)
        )
        minus_q, minus_p = (q.probs * q.logits).sum(), (p.probs * p.logits).sum()
        kl = p.logits.sub_(q.logits).mul_(p.probs).sum()
        if q.peak is not None and p.peak is not None:
            kl = kl + lse_gap(q.peak, p.peak).sum() - surplus(q, p).sum()
            minus_q, minus_p = minus_q + q.peak.prob.log().sum(), minus_p + p.peak.prob.log().sum()
        if math.isfinite(kl.item()):
            return kl, minus_q, minus_p
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    gap = (log_p - log_q).masked_fill_(p == 0, 0.0)  # 0 ln 0 is 0
    log_q, log_p = log_q.clamp(min=_LOWEST), log_p.clamp(min=_LOWEST)
    return (p * gap).sum(), (q * log_q).sum(), (p * log_p).sum()


@torch.no_grad()
def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of rows of logits in nats, computed a few rows at a time.

    Args:
        logits: The logits.

    Shape:
        - logits: ``(N, C)``.
        - result: scalar.

    Example:
        >>> entropy(torch.zeros(2, 4))
        tensor(1.3863)
    """
    total = torch.zeros((), device=logits.device)
    for chunk in logits.split(max(1, _CHUNK_ELEMENTS // logits.shape[1])):
        log_q = chunk.float().log_softmax(-1).clamp(min=_LOWEST)
        total -= (log_q.exp() * log_q).sum()
    return total / len(logits)


@torch.no_grad()
def are_probabilities(outputs: Tensor, axis: int = -1) -> Tensor:
    """Return 1 where a model's outputs are a softmax's instead of logits, else 0.

    It looks at the first rows alone: all of them may be too many to copy.

    Args:
        outputs: What is taken for logits.
        axis: The class axis.

    Example:
        >>> are_probabilities(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
        tensor(1.)
        >>> are_probabilities(torch.tensor([[-1.0, 2.0]]))
        tensor(0.)
    """
    rows = outputs.movedim(axis, -1)
    while rows.ndim > 2:
        rows = rows[0]
    rows = rows[:_LOOKED_AT].float()
    is_share = (rows >= 0).all() & (rows <= 1).all()
    return (is_share & ((rows.sum(-1) - 1).abs() < 0.01).all()).float()


class ChanceWatch:
    """Warns, once and early, of a teacher whose own loss on the labels is no better than chance.

    It is the usual sign of a wrong checkpoint, of classes in another order or of wrong
    preprocessing.
    """

    def __init__(self) -> None:
        self._ratios: dict[str, list[float]] = {}

    def wants(self, label: str) -> bool:
        """Return whether too little is known about the teacher called ``label`` so far."""
        return len(self._ratios.get(label, ())) < _CHANCE_BATCHES

    def note(self, label: str, ratio: float) -> None:
        """Note one batch's cross-entropy on the labels as a multiple of ``ln(classes)``."""
        ratios = self._ratios.setdefault(label, [])
        ratios.append(ratio)
        if len(ratios) == _CHANCE_BATCHES and math.fsum(ratios) / len(ratios) >= _CHANCE_RATIO:
            _log.warning(
                "%s: over its first %d batches its cross-entropy on the labels is %.2f times that "
                "of guessing, no better than chance. Check its checkpoint, the order of its "
                "classes, its preprocessing (Teacher(..., input_fn=...)) and the labels: where "
                "they are placeholders, pass org_loss_weight=0.",
                label,
                len(ratios),
                math.fsum(ratios) / len(ratios),
            )


@torch.no_grad()
def chance_ratio(teacher: Tensor, labels: Tensor, axis: int = -1) -> Tensor:
    """Return the teacher's cross-entropy on the labels as a multiple of ``ln(classes)``.

    Args:
        teacher: The teacher's logits.
        labels: Class indices; those that are no class, such as -100, are left out.
        axis: The class axis.

    Shape:
        - teacher: any with a class axis.
        - labels: the same without it.
        - result: scalar; 0 where no position is labelled.
    """
    classes = teacher.shape[axis]
    rows, targets = teacher.movedim(axis, -1).reshape(-1, classes), labels.reshape(-1)
    known = (targets >= 0) & (targets < classes)
    loss = torch.nn.functional.cross_entropy(
        rows.float(), torch.where(known, targets, -1), ignore_index=-1, reduction="sum"
    )
    return loss / known.sum().clamp(min=1) / math.log(classes)
