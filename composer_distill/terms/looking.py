"""At which batches something is looked for that any batch may show."""


def is_looked_at(number: int, first: int) -> bool:
    """Return whether a batch is looked at: the first few, then each time their number has doubled.

    To look makes the host wait for a GPU, so that it can't be done at each batch.

    Args:
        number: Which batch it is, from 1.
        first: How many are all looked at.

    Example:
        >>> [number for number in range(1, 40) if is_looked_at(number, 4)]
        [1, 2, 3, 4, 8, 16, 32]
    """
    return number <= first or number.bit_count() == 1
