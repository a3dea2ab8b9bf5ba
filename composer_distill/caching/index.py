"""Where each sample lies: keys in order, so that a file of any size is searched unread."""

import numpy as np

MISSING = -1
_ROWS = 32  # bits of a place that count the row in its shard


def build(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return keys and places in the order of the keys, each key once.

    Args:
        keys: ``(N, 2)`` unsigned 64-bit halves.
        places: ``(N,)``, as :func:`place` makes them.

    Shape:
        - result: ``(3, M)``: first halves, second halves, places.
    """
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, places = keys[order], places[order]
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]).any(1)
    return np.stack([keys[new, 0], keys[new, 1], places[new].astype(np.uint64)])


def find(index: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return the place of each key, ``MISSING`` where it is not there.

    Example:
        >>> keys = np.array([[7, 1], [3, 2]], np.uint64)
        >>> find(build(keys, np.array([10, 20])), np.array([[3, 2], [3, 9]], np.uint64)).tolist()
        [20, -1]
    """
    first, second, places = index
    found = np.full(len(keys), MISSING, np.int64)
    for row, at in enumerate(np.searchsorted(first, keys[:, 0]).tolist()):
        while at < len(first) and first[at] == keys[row, 0]:
            if second[at] == keys[row, 1]:
                found[row] = places[at].astype(np.int64)
                break
            at += 1
    return found


def place(shard: int, rows: int) -> np.ndarray:
    """Return the places of a shard's samples."""
    return (shard << _ROWS) + np.arange(rows)


def first_place(shard: int) -> int:
    """Return the place of a shard's first sample."""
    return shard << _ROWS


def shard_and_row(place: int) -> tuple[int, int]:
    """Return which shard and which row a place is."""
    return place >> _ROWS, place & ((1 << _ROWS) - 1)
