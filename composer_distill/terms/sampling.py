"""Which teachers answer a batch, and with what share: a pure function of seed and batch index.

Nothing is stored and no global random stream is read or moved, so that every microbatch, optimizer
closure, rank, retry and resumed run draws the same teachers.
"""

import math
import random
from collections.abc import Sequence


def sample_teachers(
    weights: Sequence[float], n_sampled: int | None, seed: int, batch: int
) -> list[tuple[int, float]]:
    """Draw distinct teachers for one batch and give each its share of the target.

    Over many batches the shares average to the normalised ``weights``, exactly: teacher ``i`` is
    drawn with probability ``p_i = min(1, c * weights[i])``, where ``c`` makes the ``p_i`` sum to
    ``n_sampled``, and its share is its normalised weight divided by ``p_i``. So one sampled teacher
    is an unbiased estimate of the mean over all (arXiv 2211.00683 samples with equal weights). The
    shares of one batch sum to 1. The draw is systematic sampling over a random order.

    Args:
        weights: Relative weights of the teachers, positive.
        n_sampled: How many to draw, 1 to ``len(weights)``; None: all of them.
        seed: Any integer; runs with equal seeds draw alike.
        batch: The index of the batch in the run.

    Returns:
        ``(index, share)`` of each drawn teacher, by rising index.

    Example:
        >>> sample_teachers([1.0, 3.0], None, seed=0, batch=0)
        [(0, 0.25), (1, 0.75)]
        >>> len(sample_teachers([1.0, 1.0, 1.0], 2, seed=0, batch=7))
        2
    """
    total = math.fsum(weights)
    normalised = [weight / total for weight in weights]
    if n_sampled is None or n_sampled >= len(weights):
        return list(enumerate(normalised))

    certain = _always_drawn(normalised, n_sampled)
    others = [index for index in range(len(weights)) if index not in certain]
    n_others = n_sampled - len(certain)
    remaining = math.fsum(normalised[index] for index in others)

    drawn = {index: normalised[index] for index in certain}
    for index in _systematic(others, normalised, n_others, random.Random(f"{seed}:{batch}")):
        drawn[index] = remaining / n_others
    return sorted(drawn.items())


def _always_drawn(normalised: Sequence[float], n_sampled: int) -> set[int]:
    """Return the teachers so heavy that an unbiased draw must always hold them."""
    certain: set[int] = set()
    while len(certain) < n_sampled:
        remaining = math.fsum(w for i, w in enumerate(normalised) if i not in certain)
        scale = (n_sampled - len(certain)) / remaining
        heavy = {i for i, w in enumerate(normalised) if i not in certain and w * scale >= 1.0}
        if not heavy:
            break
        certain |= heavy
    return certain


def _systematic(
    indices: Sequence[int], normalised: Sequence[float], n_drawn: int, stream: random.Random
) -> list[int]:
    """Draw ``n_drawn`` of ``indices`` with probabilities proportional to their weights."""
    if n_drawn == 0:
        return []
    offset = stream.random()
    keys = {index: stream.random() for index in indices}
    remaining = math.fsum(normalised[index] for index in indices)
    drawn, reached = [], 0.0
    order = sorted(indices, key=keys.__getitem__)
    for position, index in enumerate(order, start=1):
        before = reached
        reached += normalised[index] / remaining * n_drawn
        if position == len(order):
            reached = float(n_drawn)  # rounding must not lose the last point
        if math.floor(reached - offset) > math.floor(before - offset):
            drawn.append(index)
    return drawn
