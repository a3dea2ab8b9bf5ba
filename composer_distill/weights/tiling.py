"""Whether boxes fill a larger one, each place exactly once."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

Box = tuple[Sequence[int], Sequence[int]]

MAX_CUT_AXES = 6  # a weight is cut along one axis by each kind of parallel training


def fault_of_tiling(size: Sequence[int], boxes: Sequence[Box]) -> str:
    """Say what keeps boxes from filling a larger one exactly once; empty where nothing does.

    How many boxes lie on a place is told by their corners alone, counted with alternating signs
    along each axis: every place has one box if and only if what is left are the corners of the
    larger box. So the time grows with the number of boxes, wherever they lie.

    Args:
        size: The lengths of the larger box.
        boxes: Each box's offsets and lengths.

    Example:
        >>> fault_of_tiling((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))])
        ''
        >>> fault_of_tiling((4,), [((0,), (2,)), ((1,), (3,))])
        'overlap'
    """
    if any(length < 0 for length in size):
        return "are of a tensor with a negative length"
    for offsets, lengths in boxes:
        places = zip(offsets, lengths, size, strict=True)
        if any(min(start, length) < 0 or start + length > end for start, length, end in places):
            return "reach beyond it"
    solid = [box for box in boxes if math.prod(box[1])]
    whole, filled = math.prod(size), sum(math.prod(lengths) for _, lengths in solid)
    if filled != whole:
        return "overlap" if filled > whole else "leave gaps"
    cut = [at for at, length in enumerate(size) if any(box[1][at] != length for box in solid)]
    if len(cut) > MAX_CUT_AXES:
        return f"are cut along more than {MAX_CUT_AXES} axes, as no checkpoint's are"
    corners = _corners(solid, cut)
    corners.subtract(_corners([([0] * len(size), size)] if whole else [], cut))
    return "overlap and leave gaps" if any(corners.values()) else ""


def _corners(boxes: Sequence[Box], axes: Sequence[int]) -> Counter[tuple[int, ...]]:
    """Count the corners of boxes, each with the sign of how many of its ends are far ones."""
    counts: Counter[tuple[int, ...]] = Counter()
    for offsets, lengths in boxes:
        for far in product((0, 1), repeat=len(axes)):
            corner = tuple(
                offsets[at] + end * lengths[at] for at, end in zip(axes, far, strict=True)
            )
            counts[corner] += -1 if sum(far) % 2 else 1
    return counts
