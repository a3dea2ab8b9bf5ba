"""The task loss in any form that Composer trains, and the distillation term, to one loss.

Composer trains a tensor (its mean), a tuple or list (the sum of the means), a dict with ``'total'``
(that entry alone) and a dict without it (the sum of all means). Each keeps its kind here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def task_loss(loss: Any) -> Tensor:
    """Return the scalar that Composer would train for ``loss``, detached.

    Args:
        loss: The student's loss: a tensor, tuple, list or dict.

    Raises:
        TypeError: If it is of another kind.
    """
    if isinstance(loss, Tensor):
        loss = loss.detach()
        return loss if loss.ndim == 0 else loss.mean()
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
