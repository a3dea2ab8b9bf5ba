"""Boxes that fill a larger one, counted place by place."""

import itertools

import pytest
import torch

from composer_distill.weights import tiling
from composer_distill.weights.tiling import fault_of_tiling


def count(size, boxes):
    """How many boxes lie on each place."""
    counts = torch.zeros(size, dtype=torch.long)
    for offsets, lengths in boxes:
        ends = map(sum, zip(offsets, lengths, strict=True))
        counts[tuple(map(slice, offsets, ends))] += 1
    return counts


@pytest.mark.parametrize("size", [(5,), (3, 2), (2, 2, 2)])
def test_against_counting_each_place(size):
    spans = [
        [(start, end - start) for start in range(n) for end in range(start, n + 1)] for n in size
    ]
    boxes = [tuple(zip(*box, strict=True)) for box in itertools.product(*spans)]
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(3000):
        number = int(torch.randint(1, 4, (), generator=generator))
        chosen = [
            boxes[int(torch.randint(len(boxes), (), generator=generator))] for _ in range(number)
        ]
        counts = count(size, chosen)
        more = int(counts.sum()) - counts.numel()
        fault = "overlap" if more > 0 else "leave gaps" if more < 0 else "overlap and leave gaps"
        fault = "" if (counts == 1).all() else fault
        assert fault_of_tiling(size, chosen) == fault, chosen
        seen.add(fault)
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("size", "boxes", "fault"),
    [
        ((), [((), ())], ""),
        ((), [((), ()), ((), ())], "overlap"),
        ((), [], "leave gaps"),
        ((0, 3), [], ""),
        ((0, 3), [((0, 0), (0, 3))], ""),
        ((4,), [((-1,), (5,))], "reach beyond it"),
        ((4,), [((0,), (5,))], "reach beyond it"),
        ((4,), [((0,), (-1,))], "reach beyond it"),
        ((-4,), [], "are of a tensor with a negative length"),
    ],
)
def test_the_edges(size, boxes, fault):
    assert fault_of_tiling(size, boxes) == fault


def test_a_grid_of_ten_thousand_boxes():
    grid = [((row, column), (1, 1)) for row in range(1000) for column in range(10)]
    assert fault_of_tiling((1000, 10), grid) == ""
    assert fault_of_tiling((1000, 10), [*grid[:-1], grid[0]]) == "overlap and leave gaps"
    assert fault_of_tiling((1000, 10), grid[1:]) == "leave gaps"


def staircase(steps):
    """Each box lies beside all others, whichever axis one goes along."""
    long = [((n, n), (steps, 1)) for n in range(steps)]
    ends = [((0, n), (n, 1)) for n in range(steps)]
    return [*long, *ends, *[((n + steps, n), (steps - n, 1)) for n in range(steps)]]


def halves(axes):
    """A box cut in two along each axis."""
    spans = itertools.product(*[[(0, 1), (1, 1)]] * axes)
    return [2] * axes, [tuple(zip(*box, strict=True)) for box in spans]


@pytest.mark.parametrize("axes", [1, 2, 6])
def test_the_time_grows_with_the_number_of_boxes(axes, monkeypatch):
    """A file of 80 kB took 13 seconds, and one of 800 kB would have taken 20 minutes."""
    corners = []

    def product(*spans, **options):
        found = [*itertools.product(*spans, **options)]
        corners.extend(found)
        return found

    monkeypatch.setattr(tiling, "product", product)
    size, boxes = ((4000, 2000), staircase(2000)) if axes == 2 else halves(axes)
    assert fault_of_tiling(size, boxes) == ""
    solid = [box for box in boxes if all(box[1])]
    assert len(corners) == (len(solid) + 1) * 2**axes


def test_more_cuts_than_any_checkpoint_has():
    """Each axis doubles the corners."""
    assert fault_of_tiling(*halves(7)) == "are cut along more than 6 axes, as no checkpoint's are"
