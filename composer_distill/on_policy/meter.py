"""What is told of batches that the student wrote."""

from collections.abc import Sequence

import torch
from composer.core import State
from composer.utils import dist

from composer_distill.on_policy.text import IGNORED_LABEL
from composer_distill.on_policy.writing import Text

_SHORTEST = 1e-6  # seconds, what Composer's clock tells apart


class Meter:
    """The values of one batch, reduced over ranks where it ends.

    Args:
        text: What this rank trains on.
        ends: The ids that end a sequence.
        staleness: How many batches ago it was written.
    """

    def __init__(self, text: Text, ends: Sequence[int], staleness: int) -> None:
        labels = text["labels"]
        ended = torch.isin(labels, labels.new_tensor(list(ends))).any(-1)
        self._staleness = staleness
        self._sums = [len(labels), int((labels != IGNORED_LABEL).sum()), int(ended.sum())]
        self._generation: list[float] | None = None

    def note_generation(self, seconds: float, texts: Sequence[Text], n_cut: int) -> None:
        """Note that texts were written for this batch, and for later ones.

        Args:
            seconds: How long it took.
            texts: What was written.
            n_cut: How many prompts lost their beginning.
        """
        tokens = sum(int((text["labels"] != IGNORED_LABEL).sum()) for text in texts)
        self._generation = [seconds, tokens, n_cut]

    def take(self, state: State) -> dict[str, float]:
        """Return the batch's values by name, the same on every rank."""
        sums = torch.tensor([*self._sums, *(self._generation or [])], dtype=torch.float64)
        sums = state.device.tensor_to_device(sums.float() if _lacks_float64(state) else sums)
        dist.all_reduce(sums)
        rows, tokens, ended, *generation = sums.tolist()
        values = {
            "mean_length": tokens / rows,
            "share_ended": ended / rows,
            "staleness": float(self._staleness),
            "generate_time": 0.0,
        }
        if generation:
            seconds, written, cut = generation
            mean_seconds = seconds / dist.get_world_size()
            step = max(state.timestamp.batch_wct.total_seconds(), _SHORTEST)
            values |= {
                "generate_time": min(1.0, mean_seconds / step),
                "tokens_per_second": written / max(mean_seconds, _SHORTEST),
                "share_cut": cut / rows,
            }
        return {f"on_policy/{name}": value for name, value in values.items()}


def _lacks_float64(state: State) -> bool:
    return state.device.name == "mps"
