"""The contract of every loss of features, run for each row of the roster in conftest.py."""

import copy
import inspect
import math
import pickle
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from composer_distill import losses
from composer_distill.losses.features import chunks

half_precision = partial(torch.autocast, "cpu", dtype=torch.bfloat16)


def with_gradient(loss, student, teacher, mask=None, around=nullcontext):
    student = student.detach().clone().requires_grad_()
    with around():
        value = loss(student, teacher, mask)
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


def some_of(shape):
    """A mask that leaves out one sample, and where there are tokens some of them."""
    mask = torch.ones(shape, dtype=torch.bool)
    mask[1] = False
    if mask.ndim > 1:
        mask[0, 1:] = False
    return mask


def test_every_public_loss_of_features_has_a_row(roster):
    public = {
        name
        for name in losses.__all__
        if inspect.isclass(getattr(losses, name))
        and issubclass(getattr(losses, name), losses.FeatureLoss)
    }
    assert public - {"FeatureLoss"} == {name.split()[0] for name in roster}


def test_value_is_the_references(entry):
    student, teacher = entry.pair()
    expected = entry.reference(student.numpy(), teacher.numpy())
    assert entry.make()(student, teacher).item() == pytest.approx(expected, rel=1e-6)


def test_identity(entry):
    student, _ = entry.pair()
    if entry.zero_at_identity:
        assert entry.make()(student, student.clone()).item() == pytest.approx(0.0, abs=1e-12)


def test_direction(entry):
    if entry.shapes[0] != entry.shapes[1]:
        pytest.skip("unlike shapes: the reference tells the direction")
    student, teacher = entry.pair()
    there, back = entry.make()(student, teacher), entry.make()(teacher, student)
    assert torch.allclose(there, back, rtol=1e-9, atol=0.0) == entry.symmetric


def test_gradcheck(entry):
    student, teacher = entry.pair()
    loss = entry.make()
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student.requires_grad_())


def test_gradient_to_the_student_only(entry):
    student, teacher = entry.pair()
    entry.make()(student.requires_grad_(), teacher.requires_grad_()).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_a_masked_sample_is_a_removed_one(entry):
    student, teacher = entry.pair()
    keep = some_of((len(student),))
    shape = (4,) if entry.mask is not None else (len(student), student.shape[-2])
    mask = keep.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    poison = keep.reshape(-1, *[1] * (student.ndim - 1))
    poisoned = [torch.where(poison, x, math.nan) for x in (student, teacher)]
    value, gradient = with_gradient(entry.make(), *poisoned, mask)
    expected = with_gradient(entry.make(), student[keep], teacher[keep])
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient[keep], expected[1])
    assert not gradient[~keep].any()


def test_with_nothing_left_the_value_is_zero(entry):
    student, teacher = entry.pair()
    shape = entry.mask or (len(student), student.shape[-2])
    mask = torch.zeros(shape, dtype=torch.bool)
    value, gradient = with_gradient(entry.make(), student, teacher, mask)
    assert value.item() == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_types_are_computed_in_float32(entry, dtype):
    student, teacher = entry.pair(dtype)
    value, gradient = with_gradient(entry.make(), student, teacher)
    exact, exact_gradient = with_gradient(entry.make(), student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert value.item() == pytest.approx(exact.item(), rel=1e-4)
    atol = 30 * torch.finfo(dtype).eps * exact_gradient.abs().max().item()
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=atol)


def test_autocast_changes_nothing(entry):
    student, teacher = entry.pair(torch.float32)
    expected = with_gradient(entry.make(), student, teacher)
    found = with_gradient(entry.make(), student, teacher, around=half_precision)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_dead_features_have_a_finite_gradient(entry):
    _, teacher = entry.pair()
    dead = torch.zeros(entry.shapes[0], dtype=torch.float64)
    value, gradient = with_gradient(entry.make(), dead, teacher)
    assert value.isfinite()
    assert gradient.abs().max() < 1e6


def test_one_dead_sample_has_a_gradient_of_common_size(entry):
    student, teacher = entry.pair(torch.float32)
    student[0] = 0.0
    value, gradient = with_gradient(entry.make(), student, teacher)
    assert value.isfinite()
    assert gradient.abs().max() < 10.0


def test_modules_copy(entry):
    loss = entry.make()
    student, teacher = entry.pair()
    for twin in (
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        eval(repr(loss), vars(losses)),
    ):
        assert repr(twin) == repr(loss)
        assert torch.equal(twin(student, teacher), loss(student, teacher))


def test_functional_form(entry):
    loss = entry.make()
    student, teacher = entry.pair()
    assert entry.function in losses.__all__
    value = getattr(losses, entry.function)(student, teacher, **loss._options())
    assert torch.equal(value, loss(student, teacher))


def test_many_chunks_are_one(entry, monkeypatch):
    student, teacher = entry.pair()
    expected = with_gradient(entry.make(), student, teacher)
    monkeypatch.setattr(chunks, "ENTRIES", 1)
    torch.testing.assert_close(with_gradient(entry.make(), student, teacher), expected)


def test_what_is_no_feature_is_refused(entry):
    student, teacher = entry.pair()
    loss = entry.make()
    with pytest.raises(TypeError, match="student must be a floating-point tensor of features"):
        loss((1.0,) if entry.function == "minilm_relation" else None, (teacher,))
    with pytest.raises(TypeError, match=r"teacher must be .* got a tensor of torch.int64"):
        loss(student, teacher.long())
    with pytest.raises(ValueError, match="of the same samples"):
        loss(student, teacher[1:])
    with pytest.raises(TypeError, match="mask must be a boolean tensor"):
        loss(student, teacher, torch.ones(4))
    with pytest.raises(ValueError, match="mask must have"):
        loss(student, teacher, torch.ones(7, 3, dtype=torch.bool))
