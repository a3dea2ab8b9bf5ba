"""How losses are called, scheduled, combined and printed."""

import copy
import math
import pickle

import pytest
import torch

from composer_distill.losses import CosineEmbedding, DistillationLoss, KLDivergence, WeightedSum


def pair(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 5, generator=generator).unbind()


class Linear:
    """A schedule that pickles and has a repr without an address."""

    def __call__(self, state):
        return 1.0 + state

    def __repr__(self):
        return "Linear()"


def test_a_schedule_is_resolved_once_a_batch():
    loss = KLDivergence(temperature=Linear())
    student, teacher = pair()
    for state in (0, 3):
        loss.resolve(state)
        assert loss.temperature == 1.0 + state
        expected = KLDivergence(temperature=1.0 + state)(student, teacher)
        assert torch.equal(loss(student, teacher), expected)


def test_an_unresolved_schedule_says_so():
    loss = KLDivergence(temperature=Linear())
    assert callable(loss.temperature)
    with pytest.raises(TypeError, match=r"is the schedule Linear\(\).*resolve\(state\)"):
        loss(*pair())


@pytest.mark.parametrize(("value", "kind"), [(-1.0, ValueError), ("2", TypeError)])
def test_a_schedule_must_return_a_temperature(value, kind):
    with pytest.raises(kind, match="temperature must be"):
        KLDivergence(temperature=lambda state: value).resolve(None)


def test_a_weighted_sum_is_a_loss():
    a, b = KLDivergence(temperature=1.0), KLDivergence(temperature=4.0, reduction="sum")
    student, teacher = pair()
    student = student.requires_grad_()
    total = 0.25 * a + 2 * b
    expected = 0.25 * a(student, teacher) + 2 * b(student, teacher)
    torch.testing.assert_close(total(student, teacher), expected)
    ours = torch.autograd.grad(total(student, teacher), student)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, student))


def test_results_of_unlike_shapes_are_not_summed():
    loss = KLDivergence(reduction="none") + CosineEmbedding(reduction="none")
    with pytest.raises(ValueError, match=r"one shape, got kl_divergence \(.*, cosine_embedding \("):
        loss(*pair())
    with pytest.raises(ValueError, match="one shape, got kl_divergence"):
        (KLDivergence(reduction="none") + KLDivergence())(*pair())


def test_parts_are_unweighted_and_combine_to_the_value():
    loss = 0.5 * KLDivergence(temperature=1.0) + 3 * KLDivergence(temperature=2.0)
    student, teacher = pair()
    parts = loss.parts(student, teacher)
    assert list(parts) == ["kl_divergence", "kl_divergence_2"]
    torch.testing.assert_close(parts["kl_divergence_2"], loss.losses[1](student, teacher))
    torch.testing.assert_close(loss.combine(parts), loss(student, teacher))


def test_a_single_loss_has_one_part():
    loss = KLDivergence()
    parts = loss.parts(*pair())
    assert list(parts) == ["kl_divergence"]
    assert torch.equal(loss.combine(parts), loss(*pair()))


def test_each_part_is_computed_once():
    class Counting(KLDivergence):
        calls = 0

        def compute(self, student, teacher, mask, labels):
            self.calls += 1
            return super().compute(student, teacher, mask, labels)

    loss = Counting()
    total = 0.5 * loss + KLDivergence()
    total.combine(total.parts(*pair()))
    assert loss.calls == 1


def test_sums_open_scale_and_start_from_zero():
    a, b, c = KLDivergence(1.0), KLDivergence(2.0), KLDivergence(3.0)
    loss = 2 * (0.5 * a + b) + c
    assert loss.weights == [1.0, 2.0, 1.0]
    assert sum([a, b]).weights == [1.0, 1.0]
    assert (b * 3).weights == [3.0]


def test_the_mask_reaches_every_part():
    student, teacher = pair()
    mask = torch.tensor([True, False, True, True])
    loss = 0.5 * KLDivergence(1.0) + KLDivergence(2.0)
    torch.testing.assert_close(
        loss(student, teacher, mask=mask), loss(student[mask], teacher[mask])
    )


def test_weights_may_be_schedules():
    loss = WeightedSum([(Linear(), KLDivergence(temperature=Linear())), (1.0, KLDivergence())])
    with pytest.raises(TypeError, match=r"weight 0 is the schedule|temperature is the schedule"):
        loss(*pair())
    loss.resolve(1)
    assert loss.weights == [2.0, 1.0]
    expected = 2.0 * KLDivergence(2.0)(*pair()) + KLDivergence()(*pair())
    torch.testing.assert_close(loss(*pair()), expected)
    with pytest.raises(TypeError, match="scheduled weight"):
        2 * loss


def test_wrong_terms():
    with pytest.raises(ValueError, match="terms must not be empty"):
        WeightedSum([])
    with pytest.raises(TypeError, match="terms must be pairs"):
        WeightedSum([(1.0, torch.nn.MSELoss())])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="weight 0 must be finite"):
        math.nan * KLDivergence()
    with pytest.raises(TypeError):
        KLDivergence() + 1
    with pytest.raises(TypeError):
        "2" * KLDivergence()


@pytest.mark.parametrize(
    "loss",
    [
        KLDivergence(),
        KLDivergence(temperature=Linear(), dim=1, reduction="sum"),
        0.5 * KLDivergence() + 2 * KLDivergence(temperature=1.0),
    ],
)
def test_repr_evaluates_and_pickles(loss):
    names = {"KLDivergence": KLDivergence, "WeightedSum": WeightedSum, "Linear": Linear}
    assert "0x" not in repr(loss)
    assert repr(eval(repr(loss), names)) == repr(loss)
    assert repr(copy.deepcopy(loss)) == repr(loss)
    if "Linear" not in repr(loss):
        assert repr(pickle.loads(pickle.dumps(loss))) == repr(loss)
    loss.resolve(1)
    assert loss.state_dict() == {}


def test_repr_names_a_function():
    assert repr(KLDivergence(temperature=math.sqrt)).startswith("KLDivergence(temperature=sqrt,")


def test_a_subclass_must_compute():
    with pytest.raises(NotImplementedError, match="DistillationLoss must implement compute"):
        DistillationLoss()(*pair())
