"""The task loss in any form that Composer trains, and the distillation term, to one loss.

Composer trains a tensor (its mean), a tuple or list (the sum of the means), a dict with ``'total'``
(that entry alone) and a dict without it (the sum of all means). Each keeps its kind here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from composer_distill.terms.protocol import Measured


def task_loss(loss: Any) -> Tensor:
    """Return the scalar that Composer would train for ``loss``, detached.

    Args:
        loss: The student's loss: a tensor, tuple, list or dict.

    Raises:
        TypeError: If it is of another kind.
    """
    if isinstance(loss, Tensor):
        return loss.detach().mean()
    with torch.no_grad():
        return _trained_value(loss)


def blend(loss: Any, term: Tensor | None, weight: float, earlier: Sequence[Tensor] = ()) -> Any:
    """Return ``weight * loss + term`` in the kind of ``loss``, ready for Composer to train.

    A tuple or list has its entries weighted and the term appended. A dict gets the blended
    ``'total'``; its other entries stay as they were, for the log only, and are detached. The result
    shares no tensor with ``loss`` that Composer would change in place.

    Args:
        loss: The student's loss: a tensor, tuple, list or dict.
        term: The weighted distillation term, a scalar, or None for none.
        weight: The weight of the student's own loss.
        earlier: Terms that were blended into ``loss`` before: ``weight`` does not touch them.

    Shape:
        - loss: a tensor of any shape, or a collection of such.
        - term: scalar.
        - result: the shape of ``loss``.

    Raises:
        TypeError: If ``loss`` is of another kind.

    Example:
        >>> blend(torch.tensor(2.0), torch.tensor(1.0), 0.5)
        tensor(2.)
        >>> blend((torch.tensor(2.0), torch.tensor(4.0)), torch.tensor(1.0), 0.5)
        (tensor(1.), tensor(2.), tensor(1.))
        >>> blend({"ce": torch.tensor(2.0)}, torch.tensor(1.0), 0.5)
        {'ce': tensor(2.), 'total': tensor(2.)}
    """
    if earlier:
        kept = torch.stack(list(earlier)).sum() * (1.0 - weight)
        term = kept if term is None else term + kept
    if isinstance(loss, Tensor):
        return loss * weight if term is None else loss * weight + term
    if isinstance(loss, dict):
        total = _trained_value(loss) * weight
        entries = {k: v.detach() if isinstance(v, Tensor) else v for k, v in loss.items()}
        return {**entries, "total": total if term is None else total + term}
    if isinstance(loss, (tuple, list)):
        weighted = [entry * weight for entry in loss] + ([] if term is None else [term])
        return weighted if isinstance(loss, list) else tuple(weighted)
    raise _kind_error(loss)


class Contribution:
    """What one instance of ``Distillation`` adds to the loss of the current microbatch.

    Attributes:
        term: The weighted distillation term, a scalar, or None for none.
        org_weight: The weight of the student's own loss.
        values: Detached scalars for the log, by metric name.
        count: How many positions the term is a mean of; None where every sample counts alike.
        task: The student's own loss, a detached scalar; None until the term has joined.
    """

    def __init__(self) -> None:
        self.term: Tensor | None = None
        self.org_weight = 1.0
        self.values: dict[str, Tensor] = {}
        self.count: int | None = None
        self.task: Tensor | None = None

    def add(self, measured: Measured, weight: float) -> None:
        """Add a term that was measured, and what it tells."""
        weighted = measured.loss * weight
        self.term = weighted if self.term is None else self.term + weighted
        self.values |= measured.values
        self.count = measured.positions if self.count is None else self.count

    def join(self, loss: Any, peers: Sequence["Contribution"]) -> Any:
        """Return the loss with this term in it, and remember the student's own.

        Args:
            loss: The student's loss, with the terms of those peers in it that have joined.
            peers: All contributions to the microbatch, this one among them.

        Raises:
            TypeError: If ``loss`` is of a kind that Composer does not train.
        """
        joined = [peer for peer in peers if peer.task is not None]
        self.task = joined[0].task if joined else task_loss(loss)
        if self.term is None and self.org_weight == 1.0:
            return loss
        earlier = [peer.term for peer in joined if peer.term is not None]
        return blend(loss, self.term, self.org_weight, earlier)


def _trained_value(loss: Any) -> Tensor:
    if isinstance(loss, Tensor):
        return loss.mean()
    if isinstance(loss, dict):
        if "total" in loss:
            return _sum_of_means([loss["total"]])
        return _sum_of_means(list(loss.values()))
    if isinstance(loss, (tuple, list)):
        return _sum_of_means(loss)
    raise _kind_error(loss)


def _sum_of_means(entries: Sequence[Tensor]) -> Tensor:
    if not entries:
        raise TypeError("The student's loss must hold at least one tensor, got an empty one.")
    for entry in entries:
        if not isinstance(entry, Tensor):
            raise _kind_error(entry)
    return torch.stack([entry.mean() for entry in entries]).sum()


def _kind_error(loss: Any) -> TypeError:
    return TypeError(
        "The student's loss must be a tensor, tuple, list or dict of tensors, "
        f"got {type(loss).__name__}. Return one of these from the model's loss()."
    )
