"""One exact value a batch out of many microbatches."""

from collections.abc import Mapping

import torch
from torch import Tensor


class BatchMeter:
    """Weighted sums over the microbatches of one batch, kept on the device without synchronising.

    A batch may be passed over several times: an optimizer such as SAM calls its closure twice, and
    after a caught out-of-memory error Composer starts the batch again. The first pass that
    completes is the one that counts: it saw the weights with which the batch began.
    """

    def __init__(self) -> None:
        self._running: dict[str, Tensor] = {}
        self._complete: dict[str, Tensor] = {}

    def start_pass(self) -> None:
        """Forget a pass that did not complete."""
        self._running = {}

    def add(self, values: Mapping[str, Tensor], share: Tensor) -> None:
        """Add one microbatch.

        Args:
            values: Scalars of the microbatch, by name.
            share: The microbatch's share of the batch, a scalar.
        """
        with torch.no_grad():
            for name, value in values.items():
                weighted = value.detach().float() * share.detach().float()
                self._running[name] = self._running.get(name, 0.0) + weighted

    def complete_pass(self) -> None:
        """Keep the pass that just ended, unless an earlier one of this batch did."""
        if not self._complete:
            self._complete = self._running
        self._running = {}

    def take(self) -> dict[str, Tensor]:
        """Return the batch's values and start the next batch empty."""
        values, self._complete = self._complete, {}
        return values
