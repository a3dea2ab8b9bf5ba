"""One exact value a batch out of many microbatches."""

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

BALANCE, BALANCE_SQUARED = "balance", "balance_squared"
UNEVEN = (
    "The microbatches of a batch, or its ranks, keep unequal numbers of positions, and Composer "
    "does not weigh them by these: the distillation loss is a mean of means, and depends on the "
    "microbatch size. Pass Trainer(..., accumulate_train_batch_on_tokens=True) and a DataSpec "
    "whose get_num_tokens_in_batch counts the positions that mask_fn keeps."
)
_TOLERANCE = 1e-4  # of the variance: shares that are 1 % off


class BatchMeter:
    """Weighted sums over the microbatches of one batch, kept on the device without synchronising.

    A batch may be passed over several times: an optimizer such as SAM calls its closure twice, and
    after a caught out-of-memory error Composer starts the batch again. The first pass that
    completes is the one that counts: it saw the weights with which the batch began.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, ...], Tensor] = {}  # one vector for each set of names
        self._complete: dict[tuple[str, ...], Tensor] = {}

    def start_pass(self) -> None:
        """Forget a pass that did not complete."""
        self._running = {}

    def add(self, values: Mapping[str, Tensor], share: Tensor) -> None:
        """Add one microbatch.

        Args:
            values: Detached scalars of the microbatch, by name, without axes.
            share: The microbatch's share of the batch, a detached scalar.
        """
        names = tuple(values)
        weighted = torch.stack([x.float() for x in values.values()])
        weighted *= share.float()
        earlier = self._running.get(names)
        self._running[names] = weighted if earlier is None else earlier + weighted

    def complete_pass(self) -> None:
        """Keep the pass that just ended, unless an earlier one of this batch did."""
        if not self._complete:
            self._complete = self._running
        self._running = {}

    def take(self) -> tuple[tuple[str, ...], Tensor]:
        """Return the batch's names and values, ``(n,)``, and start the next batch empty."""
        complete, self._complete = self._complete, {}
        if len(complete) == 1:
            return complete.popitem()
        values: dict[str, Tensor] = {}
        for names, totals in complete.items():
            for name, total in zip(names, totals.unbind(), strict=True):
                values[name] = values[name] + total if name in values else total
        return tuple(values), torch.stack(list(values.values())) if values else torch.empty(0)


def balance(count: int, share: Tensor) -> dict[str, Tensor]:
    """Return what tells, once averaged over a batch, whether its mean over tokens is exact.

    Composer weighs a microbatch by its share of the batch, the loss is a mean over its kept
    positions; together they are the mean over the whole batch's positions if and only if each
    microbatch's number of positions is in proportion to its share.

    Args:
        count: How many positions the microbatch keeps.
        share: Its share of the batch, a scalar.
    """
    ratio = torch.where(share > 0, count / share, torch.zeros_like(share)).float()
    return {BALANCE: ratio, BALANCE_SQUARED: ratio**2}


def is_uneven(metrics: MutableMapping[str, float]) -> bool:
    """Take what :func:`balance` noted out of a batch's values; return whether shares are unfair.

    Example:
        >>> is_uneven({"balance": 8.0, "balance_squared": 64.0})
        False
        >>> is_uneven({"balance": 8.0, "balance_squared": 72.0})
        True
    """
    mean, squared = metrics.pop(BALANCE, 0.0), metrics.pop(BALANCE_SQUARED, 0.0)
    return squared > mean**2 * (1 + _TOLERANCE)
