"""Whether boxes fill a larger one, each place exactly once."""

import math
from collections.abc import Sequence

Box = tuple[Sequence[int], Sequence[int]]


def fault_of_tiling(size: Sequence[int], boxes: Sequence[Box]) -> str:
    """Say what keeps boxes from filling a larger one exactly once; empty where nothing does.

    Boxes that lie inside, do not overlap and have the same volume together leave no gap.

    Args:
        size: The lengths of the larger box.
        boxes: Each box's offsets and lengths.

    Example:
        >>> fault_of_tiling((4, 2), [((0, 0), (3, 2)), ((3, 0), (1, 2))])
        ''
        >>> fault_of_tiling((4,), [((0,), (2,)), ((1,), (2,))])
        'overlap'
    """
    if any(length < 0 for length in size):
        return "are of a tensor with a negative length"
    for offsets, lengths in boxes:
        places = zip(offsets, lengths, size, strict=True)
        if any(min(start, length) < 0 or start + length > end for start, length, end in places):
            return "reach beyond it"
    solid = [box for box in boxes if math.prod(box[1])]
    if _overlap(solid):
        return "overlap"
    if sum(math.prod(lengths) for _, lengths in solid) < math.prod(size):
        return "leave gaps"
    return ""


def _overlap(boxes: Sequence[Box]) -> bool:
    """Sweep along the axis that is cut most often, where few boxes stand beside each other."""
    axes = range(len(boxes[0][0]) if boxes else 0)
    axis = max(axes, key=lambda axis: len({box[0][axis] for box in boxes}), default=None)
    if axis is None:  # numbers without an axis: the second one lies where the first one does
        return len(boxes) > 1
    reached: list[Box] = []
    for box in sorted(boxes, key=lambda box: box[0][axis]):
        reached = [other for other in reached if other[0][axis] + other[1][axis] > box[0][axis]]
        if any(_meet(box, other) for other in reached):
            return True
        reached.append(box)
    return False


def _meet(one: Box, other: Box) -> bool:
    spans = zip(*one, *other, strict=True)
    return all(
        start < begin + length and begin < start + size for start, size, begin, length in spans
    )
