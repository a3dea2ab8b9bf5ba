"""Vectors without a direction, and positions where every class but one is ruled out."""

import math

import pytest
import torch

from composer_distill import losses as L

LABELS = torch.tensor([2, 0, 1])
# Infinite by formula, or of numbers and not of classes
UNBOUNDED = (L.ReverseKLDivergence, L.AdaptiveKLDivergence, L.LogitMSE, L.CosineEmbedding)


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_gradient(loss, student, *rest, **kwargs):
    student = student.detach().clone().requires_grad_()
    value = loss(student, *rest, **kwargs)
    return value.detach(), torch.autograd.grad(value.sum(), student)[0]


def sure(classes=5, below=-math.inf, dtype=torch.float64):
    """Logits at ``below`` but for the labels'."""
    out = torch.full((len(LABELS), classes), below, dtype=dtype)
    return out.scatter(1, LABELS.unsqueeze(1), 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-10, 1e-6, 1e-3, 1.0, 1e4])
def test_the_cosine_is_torchs(size, dtype):
    student, teacher = size * normal(4, 5, dtype=dtype), normal(4, 5, seed=1, dtype=dtype)
    found = with_gradient(L.CosineEmbedding(), student, teacher)
    theirs = with_gradient(torch.nn.CosineEmbeddingLoss(), student, teacher, torch.ones(4))
    torch.testing.assert_close(found, theirs, check_dtype=False)
    assert found[1].abs().max() < 1e6


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15, 1e30])
def test_the_cosine_of_any_length_is_finite(size):
    student, teacher = size * normal(4, 5, dtype=torch.float32), normal(4, 5, seed=1)
    value, gradient = with_gradient(L.CosineEmbedding(), student, teacher.float())
    assert 0.0 < value < 2.0
    assert gradient.abs().max() < 1e6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_the_cosine_of_zeros_is_zero_and_its_gradient_that_of_length_one(dtype):
    student = normal(3, 5, dtype=dtype)
    student[1] = 0.0
    teacher = normal(3, 5, seed=1, dtype=dtype)
    loss = L.CosineEmbedding(reduction="none")
    value, gradient = with_gradient(loss, student, teacher)
    assert value[1] == 1.0
    expected = -(teacher[1].double() / teacher[1].double().norm())
    torch.testing.assert_close(gradient[1], expected.to(dtype))
    if dtype in (torch.float64, torch.float32):
        torchs = torch.nn.CosineEmbeddingLoss(reduction="none")
        theirs = with_gradient(torchs, student, teacher, torch.ones(3))
        torch.testing.assert_close(value, theirs[0])
        torch.testing.assert_close(gradient[1], 1e-6 * theirs[1][1])
        torch.testing.assert_close(gradient[::2], theirs[1][::2])


def test_a_head_that_starts_at_zero_learns_the_direction():
    inputs, teacher = normal(16, 4), normal(16, 4) @ normal(4, 3, seed=1)
    head = torch.nn.Linear(4, 3, dtype=torch.float64)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        L.CosineEmbedding()(head(inputs), teacher).backward()
        optimizer.step()
    assert head.weight.abs().max() < 10.0
    assert L.CosineEmbedding()(head(inputs), teacher) < 0.02


LABELLED = [L.NormalizedKD(), L.NormalizedKD(temperature=4.0), L.DecoupledKD(temperature=1.0)]
LABELLED += [L.DecoupledKD()]


@pytest.mark.parametrize("loss", LABELLED, ids=repr)
def test_others_ruled_out_by_the_teacher_leave_the_label_alone(loss):
    student = normal(3, 5)
    found = with_gradient(loss, student, sure(), labels=LABELS)
    t = loss.temperature if isinstance(loss, L.DecoupledKD) else 1.0

    def of_label(s):
        return t**2 * torch.nn.functional.cross_entropy(s / t, LABELS)

    torch.testing.assert_close(found, with_gradient(of_label, student))


@pytest.mark.parametrize("loss", LABELLED, ids=repr)
def test_others_ruled_out_by_both_are_nothing(loss):
    value, gradient = with_gradient(loss, sure(), sure() + 1.0, labels=LABELS)
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_others_ruled_out_by_the_student_have_no_part(temperature):
    loss = L.DecoupledKD(alpha=0.0, temperature=temperature)
    value, gradient = with_gradient(loss, sure(), normal(3, 5), labels=LABELS)
    assert value == 0.0
    assert not gradient.any()
    loss = L.NormalizedKD(temperature=temperature)  # the label's log q is 0
    value, gradient = with_gradient(loss, sure(), normal(3, 5), labels=LABELS)
    assert value == 0.0
    assert not gradient.any()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", LABELLED, ids=repr)
def test_a_mixture_is_the_mean_over_all_positions(loss, masked):
    student, teacher = normal(3, 5), normal(3, 5, seed=1)
    teacher[1] = sure()[1]
    mask = torch.tensor([True, True, False]) if masked else None
    found = with_gradient(loss, student, teacher, mask=mask, labels=LABELS)
    rows = range(2 if masked else 3)
    parts = [
        with_gradient(loss, student[i], teacher[i], labels=LABELS[i : i + 1].squeeze(0))
        for i in rows
    ]
    torch.testing.assert_close(found[0], sum(value for value, _ in parts) / len(rows))
    for i in rows:
        torch.testing.assert_close(found[1][i], parts[i][1] / len(rows))


@pytest.mark.parametrize("loss", LABELLED, ids=repr)
@pytest.mark.parametrize("side", [0, 1])
def test_a_nan_among_the_others_is_seen(loss, side):
    both = [sure(), sure()]
    both[side][0, 0] = math.nan
    assert loss(*both, labels=LABELS).isnan()


def test_a_teacher_sure_of_one_class_gives_the_formulas_limit(row, call):
    loss = row.make()
    if isinstance(loss, (*UNBOUNDED, L.StandardizedLogits, L.WeightedSum)) or row.labels:
        pytest.skip("has no such limit, or is tested above")
    student = normal(3, 5)
    found = with_gradient(lambda s, t: call(loss, s, t), student, sure())
    # Far below, but a probability of exactly 0 at any temperature here
    limit = with_gradient(lambda s, t: call(loss, s, t), student, sure(below=-1e5))
    torch.testing.assert_close(found, limit)
    assert found[0] < 100.0


def test_what_both_are_sure_of_costs_nothing(row, call):
    value, gradient = with_gradient(
        lambda s, t: call(row.make(), s, t, None, LABELS), sure(), sure()
    )
    if not isinstance(row.make(), L.CosineEmbedding):
        assert value == pytest.approx(0.0, abs=1e-7)
    assert gradient.abs().max() < 1e-7 or isinstance(row.make(), L.CosineEmbedding)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("loss", [L.KLDivergence, L.ReverseKLDivergence])
def test_the_infinite_is_as_enormous_as_the_page_says(loss, temperature):
    one, other = sure(), normal(3, 5)
    if loss is L.ReverseKLDivergence:
        one, other = other, one
    found = loss(temperature)(one, other)
    free = (normal(3, 5) / temperature).softmax(-1)
    rest = 1.0 - free.gather(1, LABELS.unsqueeze(1)).mean()
    torch.testing.assert_close(found, 1e30 * rest * temperature)


def test_numbers_at_minus_infinity_on_one_side_are_no_distance():
    assert L.LogitMSE()(sure(), normal(3, 5)).isinf()
    assert L.CosineEmbedding()(sure(), normal(3, 5)).isnan()
