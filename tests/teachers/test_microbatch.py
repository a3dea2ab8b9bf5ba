import pytest
import torch

from composer_distill.teachers.microbatch import Microbatch
from composer_distill.terms.narrowing import narrowed


def rows(scores, mask, axis=-1):
    return Microbatch({}, None, scores, mask, axis=axis).rows_of(scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((2, 5, 7), -1), ((2, 7, 5), 1), ((2, 7, 3, 4), 1)])
def test_selected_positions_and_their_gradient_are_those_of_torchs_own_indexing(shape, axis, dtype):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    mask = torch.rand(scores.movedim(axis, -1).shape[:-1], generator=generator) > 0.4
    ours, expected = rows(scores, mask, axis), scores.movedim(axis, -1)[mask]
    assert 0 < len(ours) < mask.numel()
    assert ours.equal(expected)
    gradient = torch.randn(ours.shape, generator=generator).to(dtype)
    (mine,), (theirs,) = (torch.autograd.grad(kept, scores, gradient) for kept in (ours, expected))
    assert mine.equal(theirs)


def test_selected_positions_are_rows_with_a_gradient():
    scores = torch.arange(12.0).reshape(2, 2, 3).requires_grad_()
    mask = torch.tensor([[True, False], [False, True]])
    kept = rows(scores, mask)
    assert kept.tolist() == [[0.0, 1.0, 2.0], [9.0, 10.0, 11.0]]
    assert rows(scores.movedim(-1, 1), mask, axis=1).equal(kept)
    empty = rows(scores, torch.zeros_like(mask))
    assert empty.shape == (0, 3)
    assert empty.requires_grad


SCORES = torch.arange(24.0).reshape(2, 3, 4).requires_grad_()
MASK = torch.tensor([[True, False, True], [False, False, True]])
LABELS = torch.tensor([[0, 1, 2], [3, 0, 1]])


def test_kept_positions_are_what_is_compared_and_logged():
    found = Microbatch({}, None, SCORES, MASK, LABELS)
    kept = SCORES[MASK]
    assert found.compared.logits.equal(kept)
    assert found.compared.mask is None
    assert found.compared.labels.tolist() == [0, 2, 1]
    assert found.compared == found.kept
    assert (found.count, found.empty) == (3, False)
    assert found.places.tolist() == [0, 2, 5]
    assert found.keep(kept + 1).equal(kept + 1)
    assert found.head_mask is MASK


def test_a_loss_that_needs_the_layout_gets_the_mask_and_the_log_the_rows():
    found = Microbatch({}, None, SCORES.movedim(-1, 1), MASK, LABELS, axis=1, selects=False)
    assert found.compared == (found.logits, 1, MASK, LABELS)
    assert found.kept.logits.equal(SCORES[MASK])
    assert found.kept.axis == -1
    assert found.keep(found.logits + 1).equal(SCORES[MASK] + 1)
    assert found.head_mask is None


def test_without_a_mask_everything_counts():
    found = Microbatch({}, None, SCORES)
    assert found.compared.logits is found.kept.logits is SCORES
    assert (found.count, found.empty, found.head_mask) == (None, False, None)


@pytest.mark.parametrize("selects", [True, False])
def test_where_nothing_is_kept_one_row_stands_in(selects):
    nothing = torch.zeros_like(MASK)
    found = Microbatch({}, None, SCORES, nothing, LABELS, selects=selects)
    assert (found.count, found.empty) == (0, True)
    assert found.kept.logits.equal(torch.zeros(1, 4))
    assert found.keep(SCORES).equal(torch.zeros(1, 4)) or selects
    found.zero().backward()
    assert SCORES.grad.equal(torch.zeros_like(SCORES))


def test_what_is_made_of_a_microbatch_is_not_as_early_as_it():
    microbatch = Microbatch({"x": SCORES}, None, SCORES, MASK, early=True)
    assert not microbatch.take(torch.tensor([1])).early
    target = microbatch.compared.logits.detach()
    assert not narrowed(microbatch, target, torch.tensor([True, False, True]))[0].early
