"""Boxes that fill a larger one, counted place by place."""

import itertools

import pytest
import torch

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
        fault = "overlap" if (counts > 1).any() else "leave gaps" if (counts < 1).any() else ""
        assert fault_of_tiling(size, chosen) == fault, chosen
        seen.add(fault)
    assert len(seen) == 3


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


def test_a_grid_of_ten_thousand_boxes_is_looked_at_a_row_at_a_time():
    grid = [((row, column), (1, 1)) for row in range(1000) for column in range(10)]
    assert fault_of_tiling((1000, 10), grid) == ""
    assert fault_of_tiling((1000, 10), [*grid[:-1], grid[0]]) == "overlap"
    assert fault_of_tiling((1000, 10), grid[1:]) == "leave gaps"
