"""Which batches the student writes, and from which random stream: pure functions of seed and batch.

Nothing is stored and no global stream is read or moved, as where teachers are drawn.
"""

import random


def is_drawn(fraction: float, seed: int, batch: int) -> bool:
    """Return whether a batch is one of those that the student writes.

    Args:
        fraction: The probability, 0 to 1.
        seed: Any integer; runs with equal seeds draw alike.
        batch: The index of the batch in the run.

    Example:
        >>> [is_drawn(0.5, seed=0, batch=batch) for batch in range(6)]
        [False, False, False, True, True, False]
        >>> is_drawn(0.0, seed=0, batch=0), is_drawn(1.0, seed=0, batch=0)
        (False, True)
    """
    return random.Random(f"on_policy:{seed}:{batch}").random() < fraction


def stream_seed(seed: int, batch: int, rank: int) -> int:
    """Return the seed of the random stream from which a rank's tokens of one batch are sampled.

    Args:
        seed: Any integer.
        batch: The index of the batch in the run.
        rank: The rank in all of the run.

    Example:
        >>> stream_seed(0, 3, rank=0) == stream_seed(0, 3, rank=1)
        False
    """
    return random.Random(f"on_policy:{seed}:{batch}:{rank}").getrandbits(63)
