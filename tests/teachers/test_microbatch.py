import pytest
import torch

from composer_distill.teachers.microbatch import select_positions


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 7), -1), ((2, 7, 5), 1), ((2, 7, 3, 4), 1)])
def test_selected_positions_and_their_gradient_are_those_of_torchs_own_indexing(shape, axis, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    mask = torch.rand(scores.movedim(axis, -1).shape[:-1], generator=generator) > 0.4
    ours, expected = select_positions(scores, mask, axis), scores.movedim(axis, -1)[mask]
    assert 0 < len(ours) < mask.numel()
    assert ours.equal(expected)
    gradient = torch.randn(ours.shape, generator=generator).to(dtype)
    (mine,), (theirs,) = (torch.autograd.grad(rows, scores, gradient) for rows in (ours, expected))
    assert mine.equal(theirs)


def test_selected_positions_are_rows_with_a_gradient():
    scores = torch.arange(12.0).reshape(2, 2, 3).requires_grad_()
    mask = torch.tensor([[True, False], [False, True]])
    rows = select_positions(scores, mask)
    assert rows.tolist() == [[0.0, 1.0, 2.0], [9.0, 10.0, 11.0]]
    assert select_positions(scores.movedim(-1, 1), mask, axis=1).equal(rows)
    empty = select_positions(scores, torch.zeros_like(mask))
    assert empty.shape == (0, 3)
    assert empty.requires_grad
