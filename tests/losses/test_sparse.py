"""Distances from few classes against the dense ones, written by hand in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from composer_distill.caching.few import keep_few, pack_few, unpack_few
from composer_distill.caching.manifest import Recipe
from composer_distill.losses import (
    DIST,
    JensenShannonDivergence,
    KLDivergence,
    ReverseKLDivergence,
    SoftCrossEntropy,
    TopKKL,
)
from composer_distill.losses.sparse_choice import check_sparse, sparse_parts

N, C = 7, 11
KEY = np.array([3, 4], np.uint64)


def logits(seed, n=N, c=C, scale=2.0):
    return scale * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))


def kept(teacher, kind="top_k", count=4, temperature=1.0, seed=0):
    return keep_few(teacher, Recipe("a teacher", kind, count, temperature, seed), KEY)


def value_and_gradient(function, student):
    student = student.clone().requires_grad_()
    value = function(student)
    return value.detach(), torch.autograd.grad(value, student)[0]


def sparse(loss, target, tail: Any = "bucket"):
    return lambda student: loss.combine(sparse_parts(loss, student, target, tail))


ALL = [
    KLDivergence(1.5),
    TopKKL(C, temperature=1.5),
    SoftCrossEntropy(1.5),
    ReverseKLDivergence(1.5),
    JensenShannonDivergence(0.3, temperature=1.5),
    JensenShannonDivergence(0.3, scaled=True, temperature=1.5),
    JensenShannonDivergence(0.0, scaled=True, temperature=1.5),
    JensenShannonDivergence(1.0, scaled=True, temperature=1.5),
    0.5 * KLDivergence(1.5) + 2.0 * SoftCrossEntropy(1.5),
]


@pytest.mark.parametrize("loss", ALL, ids=repr)
@pytest.mark.parametrize("tail", ["bucket", "uniform"])
def test_all_classes_kept_give_the_dense_loss_and_gradient(loss, tail):
    student, teacher = logits(0), logits(1)
    target = kept(teacher, count=C, temperature=1.5)
    found = value_and_gradient(sparse(loss, target, tail), student)
    dense = value_and_gradient(lambda s: loss(s, teacher), student)
    torch.testing.assert_close(found, dense, rtol=1e-6, atol=1e-6)


def by_hand(student, teacher, temperature, tail, distance, k=4):
    """Return a distance over k + 1 outcomes, or over all with the rest spread evenly."""
    q = (student.double() / temperature).softmax(-1)
    p = (teacher.double() / temperature).softmax(-1)
    indices = p.topk(k, -1).indices
    q_k, p_k = q.gather(1, indices), p.gather(1, indices)
    if tail == "bucket":
        q = torch.cat([q_k, 1 - q_k.sum(1, keepdim=True)], 1)
        p = torch.cat([p_k, 1 - p_k.sum(1, keepdim=True)], 1)
    elif tail == "uniform":
        even = (1 - p_k.sum(1, keepdim=True)) / (p.shape[1] - k)
        p = even.expand_as(p).scatter(1, indices, p_k)
    else:
        p = torch.zeros_like(p).scatter(1, indices, p_k / p_k.sum(1, keepdim=True))
    return temperature**2 * distance(q, p).sum(-1).mean()


def forward(q, p):
    return torch.xlogy(p, p) - p * q.log()


def mixed(q, p):
    m = 0.3 * p + 0.7 * q
    return 0.3 * (torch.xlogy(p, p) - p * m.log()) + 0.7 * q * (q / m).log()


CUT = [
    (KLDivergence, forward, {}),
    (SoftCrossEntropy, lambda q, p: -p * q.log(), {}),
    (ReverseKLDivergence, lambda q, p: q * (q / p).log(), {}),
    (JensenShannonDivergence, mixed, {"beta": 0.3}),
]


@pytest.mark.parametrize(
    ("loss", "distance", "options"), CUT, ids=lambda x: getattr(x, "__name__", "")
)
@pytest.mark.parametrize("tail", ["bucket", "uniform", "renormalise"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_few_classes_give_the_loss_that_is_written_by_hand(
    loss, distance, options, tail, temperature
):
    if loss is ReverseKLDivergence and tail == "renormalise":
        pytest.skip("infinite, and refused")
    student, teacher = logits(0), logits(1)
    target = kept(teacher, temperature=temperature)
    found = value_and_gradient(
        sparse(loss(temperature=temperature, **options), target, tail), student
    )
    expected = value_and_gradient(
        lambda s: by_hand(s, teacher, temperature, tail, distance), student
    )
    torch.testing.assert_close(found[0], expected[0].float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found[1], expected[1].float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tail", ["bucket", "renormalise"])
def test_top_k_of_what_is_kept_is_top_k_of_all(tail):
    student, teacher = logits(0), logits(1)
    loss = TopKKL(3, tail)
    found = value_and_gradient(sparse(loss, kept(teacher, count=6)), student)
    dense = value_and_gradient(lambda s: loss(s, teacher), student)
    torch.testing.assert_close(found, dense, rtol=1e-5, atol=1e-6)


def test_a_student_that_agrees_has_no_distance_and_no_gradient():
    teacher = logits(1)
    for tail in ("bucket", "uniform"):
        loss = KLDivergence(1.0)
        alike = teacher
        if tail == "uniform":
            ids = teacher.topk(4, -1).indices
            p = teacher.softmax(-1)
            known = p.gather(1, ids)
            alike = ((1 - known.sum(1, keepdim=True)) / 7).expand_as(p).scatter(1, ids, known).log()
        value, gradient = value_and_gradient(sparse(loss, kept(teacher), tail), alike)
        assert abs(value) < 1e-6
        assert gradient.abs().max() < 1e-6


# Samples: unbiased


@pytest.fixture(scope="module")
def drawn():
    """The gradients and values of 2000 caches of a few draws, and those of the whole teacher."""
    student, teacher = logits(0, 3, scale=1.0), logits(1, 3, scale=1.0)
    loss = KLDivergence(1.0)
    many = [
        value_and_gradient(sparse(loss, kept(teacher, "samples", 5, seed=seed)), student)
        for seed in range(2000)
    ]
    values, gradients = map(torch.stack, zip(*many, strict=True))
    return (
        values,
        gradients,
        value_and_gradient(lambda s: loss(s, teacher), student),
        student,
        teacher,
    )


def off(found, expected):
    """Return by how many standard errors a mean is off, at most."""
    error = found.std(0) / math.sqrt(len(found))
    return ((found.mean(0) - expected).abs() / error).max().item()


def test_the_mean_gradient_and_value_of_sampled_caches_are_the_dense_ones(drawn):
    values, gradients, (value, gradient), _, _ = drawn
    assert off(values, value) < 3
    distances = (gradients.mean(0) - gradient).abs() / (gradients.std(0) / math.sqrt(2000))
    # of 33 independent entries one in eleven times is beyond three standard errors
    assert (distances < 3).float().mean() > 0.95
    assert distances.max() < 4
    assert gradients.std(0).max() > 0.01


@pytest.mark.parametrize("tail", ["bucket", "renormalise", "uniform"])
def test_the_gradient_of_top_k_is_biased(drawn, tail):
    _, gradients, (_, gradient), student, teacher = drawn
    _, found = value_and_gradient(sparse(KLDivergence(1.0), kept(teacher, count=2), tail), student)
    error = gradients.std(0) / math.sqrt(2000)
    assert ((found - gradient).abs() / error).max() > 10


def test_draws_follow_the_distribution_and_the_seed():
    teacher = logits(1, 2)
    many = kept(teacher, "samples", 200_000)
    shares = torch.zeros(2, C).scatter_add_(1, many.indices, many.log_probs.exp())
    torch.testing.assert_close(shares, teacher.softmax(-1), rtol=0, atol=0.005)
    one, same, other = (kept(teacher, "samples", 20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.log_probs, same.log_probs)
    assert one.indices.shape != other.indices.shape or not torch.equal(one.indices, other.indices)


def test_the_value_of_samples_is_a_divergence_that_can_be_zero():
    teacher = logits(1, 50)
    loss = KLDivergence(1.0)
    values = [
        float(sparse(loss, kept(teacher, "samples", 50, seed=seed))(teacher)) for seed in range(50)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(50)


# Where it is kept


@pytest.mark.parametrize("kind", ["top_k", "samples"])
@pytest.mark.parametrize("classes", [C, 70_000])
def test_what_is_packed_comes_back(kind, classes):
    teacher = logits(1, 3, classes)
    recipe = Recipe("a teacher", kind, 5, 1.0, 0)
    before = keep_few(teacher, recipe, KEY)
    columns = pack_few(before, recipe, torch.float32)
    back = unpack_few(columns, 3, recipe, torch.float32, classes)
    assert torch.equal(back.indices, before.indices)
    for name in ("log_probs", "tail", "entropy"):
        torch.testing.assert_close(getattr(back, name), getattr(before, name), rtol=0, atol=1e-6)


def test_half_precision_still_sums_to_one():
    recipe = Recipe("a teacher", "top_k", 5, 1.0)
    teacher = logits(1, 500, scale=6.0)
    columns = pack_few(keep_few(teacher, recipe, KEY), recipe, torch.float16)
    back = unpack_few(columns, 500, recipe, torch.float16, C)
    total = torch.logaddexp(back.log_probs.logsumexp(-1), back.tail)
    torch.testing.assert_close(total, torch.zeros(500), rtol=0, atol=1e-5)
    exact = kept(teacher, count=5)
    assert (back.log_probs.exp() - exact.log_probs.exp()).abs().max() < 2e-3


# What can't be


@pytest.mark.parametrize("loss", [DIST(), torch.nn.MSELoss(), ReverseKLDivergence()], ids=repr)
def test_a_loss_that_can_not_is_refused_with_those_that_can(loss):
    sampled = isinstance(loss, ReverseKLDivergence)
    with pytest.raises(ValueError, match="Those that can are KLDivergence, SoftCrossEntropy"):
        check_sparse(loss, 4, "bucket", sampled=sampled)


@pytest.mark.parametrize(
    ("loss", "tail", "message"),
    [
        (ReverseKLDivergence(), "renormalise", "with tail='renormalise', are kept"),
        (TopKKL(9), "bucket", "reads 9 classes, and 4 are kept"),
        (KLDivergence(dim=1), "bucket", "needs dim=-1"),
        (KLDivergence(), "none", "tail must be one of 'bucket', 'uniform', 'renormalise'"),
        (KLDivergence() + DIST(), "bucket", r"kd_loss_fn \(DIST\)"),
    ],
)
def test_what_makes_no_sense_is_refused(loss, tail, message):
    with pytest.raises(ValueError, match=message):
        check_sparse(loss, 4, tail, sampled=False)


def test_another_temperature_is_refused():
    with pytest.raises(ValueError, match="temperature 2, and the cached answers were kept at 1"):
        sparse_parts(KLDivergence(2.0), logits(0), kept(logits(1)), "bucket")


def test_more_classes_than_there_are_are_refused():
    with pytest.raises(ValueError, match="top_k must be at most the teacher's 11 classes, got 12"):
        kept(logits(1), count=12)


# As the dense losses


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_half_precision_do_not_vanish(dtype):
    student, teacher = logits(0, 64, 500).to(dtype), logits(1, 64, 500)
    target = kept(teacher, count=20)
    _, found = value_and_gradient(sparse(KLDivergence(1.0), target), student)
    _, exact = value_and_gradient(sparse(KLDivergence(1.0), target), student.float())
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), exact, rtol=2e-2, atol=1e-5)


def test_a_class_at_minus_infinity_does_no_harm():
    student, teacher = logits(0), logits(1)
    student[:, -1] = -math.inf
    for tail in ("bucket", "uniform"):
        value, gradient = value_and_gradient(
            sparse(KLDivergence(1.0), kept(teacher), tail), student
        )
        assert not gradient.isnan().any()
        assert not value.isnan()


class Storages(TorchDispatchMode):
    """Notes the size of each piece of memory that operations return."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.sizes[storage.data_ptr()] = (
                    storage.nbytes(),
                    storage,
                )  # kept, to be told apart
        return result


@pytest.mark.parametrize("tail", ["bucket", "uniform"])
def test_nothing_as_large_as_the_logits_is_made_but_their_gradient(tail):
    student = logits(0, 64, 1 << 14).requires_grad_()
    loss = sparse(KLDivergence(1.0), kept(logits(1, 64, 1 << 14), count=8), tail)
    with Storages() as storages:
        torch.autograd.grad(loss(student), student)
    sizes = {at: size for at, (size, _) in storages.sizes.items() if at != student.data_ptr()}
    size = student.numel() * 4
    assert [one for one in sizes.values() if one > size // 4] == [size]
