"""The contract of every loss, run for each row of the roster in conftest.py."""

import copy
import inspect
import math
import pickle

import pytest
import torch

from composer_distill import losses


def logits(*shape, seed=0, dtype=torch.float64, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def pair(*shape, dtype=torch.float64):
    return logits(*shape, dtype=dtype), logits(*shape, seed=1, dtype=dtype)


def with_gradient(call, loss, student, teacher, mask=None, labels=None):
    student = student.detach().clone().requires_grad_()
    value = call(loss, student, teacher, mask, labels)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    return value.detach(), gradient


def reference_of(row, student, teacher):
    s, t = (x.double().reshape(-1, x.shape[-1]).numpy() for x in (student, teacher))
    labels = torch.arange(s.shape[0]).numpy() % s.shape[1]
    return row.reference(s, t, labels).mean()


def test_every_public_loss_has_a_row(roster):
    public = {
        name
        for name in losses.__all__
        if inspect.isclass(getattr(losses, name))
        and issubclass(getattr(losses, name), torch.nn.Module)
        and not issubclass(getattr(losses, name), losses.FeatureLoss)  # features/ has their roster
    }
    # The interface itself, and the one that takes no logits and has test_fused_linear_kl.py.
    public -= {"DistillationLoss", "FusedLinearKL"}
    assert public == {name.split()[0] for name in roster}


def test_identity(row, call):
    z = logits(6, 5, dtype=torch.float32)
    value = call(row.make(), z, z.clone()).item()
    if row.zero_at_identity:
        assert value == pytest.approx(0.0, abs=1e-6)
    else:
        assert value > 0


@pytest.mark.parametrize("seed", range(3))
def test_positive_elsewhere(row, call, seed):
    student, teacher = logits(6, 5, seed=seed), logits(6, 5, seed=seed + 10)
    assert call(row.make(), student, teacher).item() > 1e-3


@pytest.mark.parametrize("classes", [7, 600])
@pytest.mark.parametrize("closeness", [1e-4, 1e-6])
def test_near_agreement_rounding_never_takes_it_below_zero(row, call, closeness, classes):
    if not row.zero_at_identity:
        pytest.skip("is not 0 at agreement")
    for seed in range(4):
        student = logits(60, classes, seed=seed, dtype=torch.float32, scale=5.0)
        teacher = student + logits(60, classes, seed=9, dtype=torch.float32, scale=closeness)
        for wanted in (False, True):
            leaf = student.clone().requires_grad_(wanted)
            assert 0.0 <= call(row.make(), leaf, teacher).item() < 1e-3


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5), (2, 2, 3, 5)])
def test_value_is_the_references(row, call, shape):
    student, teacher = pair(*shape)
    expected = reference_of(row, student, teacher)
    assert call(row.make(), student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_one_position_without_leading_axes(row, call):
    if not row.per_position:
        pytest.skip("relates positions")
    student, teacher = pair(5)
    expected = reference_of(row, student, teacher)
    assert call(row.make(), student, teacher).item() == pytest.approx(expected, rel=1e-9)


def test_direction(row, call):
    student, teacher = pair(6, 5)
    there = call(row.make(), student, teacher)
    back = call(row.make(), teacher, student)
    assert torch.allclose(there, back, rtol=1e-9, atol=0.0) == row.symmetric


def test_gradcheck(row, call):
    if row.constant_weights:
        pytest.skip("finite differences would move the weights; see test_losses.py")
    student, teacher = pair(4, 5)
    loss = row.make()
    assert torch.autograd.gradcheck(lambda s: call(loss, s, teacher), student.requires_grad_())


def test_chunked_gradient_is_autograds_of_the_terms(row, call):
    if not row.per_class:
        pytest.skip("has no terms")
    student, teacher = pair(6, 5)
    value, gradient = with_gradient(call, row.make(reduction="sum"), student, teacher)
    terms, expected = with_gradient(call, row.make(reduction="none"), student, teacher)
    torch.testing.assert_close(value, terms.sum())
    torch.testing.assert_close(gradient, expected)


def test_many_classes_are_softened_as_few(row, call, monkeypatch):
    student, teacher = pair(7, 5)
    expected = with_gradient(call, row.make(), student, teacher)
    as_if_wide(monkeypatch)
    torch.testing.assert_close(with_gradient(call, row.make(), student, teacher), expected)


def test_many_chunks_are_one(row, call, monkeypatch):
    student, teacher = pair(7, 5)
    mask = torch.tensor([True, True, False, True, True, True, True])
    expected = with_gradient(call, row.make(), student, teacher, mask)
    monkeypatch.setattr("composer_distill.losses.kernel._CPU_ENTRIES", 10)
    as_if_wide(monkeypatch)
    chunked = with_gradient(call, row.make(), student, teacher, mask)
    torch.testing.assert_close(chunked, expected)


def test_gradient_to_the_student_only(row, call):
    student, teacher = pair(6, 5)
    teacher = teacher.requires_grad_()
    call(row.make(), student.requires_grad_(), teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)])
def test_a_masked_position_is_a_removed_one(row, call, shape):
    student, teacher = pair(*shape)
    labels = torch.arange(6).reshape(shape[:-1]) % 5
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool().reshape(shape[:-1])
    poisoned = student.masked_fill(~mask.unsqueeze(-1), math.nan)
    value, gradient = with_gradient(call, row.make(), poisoned, teacher, mask, labels)
    removed = with_gradient(call, row.make(), student[mask], teacher[mask], None, labels[mask])
    torch.testing.assert_close(value, removed[0])
    torch.testing.assert_close(gradient[mask], removed[1])
    assert not gradient[~mask].any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (4, 5)])
def test_nothing_left_is_a_connected_zero(row, call, shape):
    student, teacher = pair(*shape)
    student[...] = math.inf
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    value, gradient = with_gradient(call, row.make(), student, teacher, mask)
    assert value.item() == 0.0
    assert gradient.shape == student.shape
    assert not gradient.any()


def test_microbatch_means_add_up(row, call):
    if not row.per_position:
        pytest.skip("relates positions, as its page says")
    student, teacher = pair(10, 5)
    labels = torch.arange(10) % 5
    whole = call(row.make(), student, teacher, None, labels)
    pieces = zip(*(x.split([4, 4, 2]) for x in (student, teacher, labels)), strict=True)
    parts = [len(y) * call(row.make(), s, t, None, y) for s, t, y in pieces]
    torch.testing.assert_close(sum(parts) / 10, whole)


def as_if_wide(monkeypatch):
    """Soften a few classes in the way that many are."""
    monkeypatch.setattr("composer_distill.losses.softened._SMALL_ENTRIES", 0)
    monkeypatch.setattr("composer_distill.losses.softened._FEW_CLASSES", 0)


def extremes():
    inf = math.inf
    return {
        "far apart": ([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], [[-1e4, 1e4, 0.0], [-1e4, 1e4, 0.0]]),
        "ruled out in both": (
            [[1.0, -inf, 0.0], [0.5, 0.0, -inf]],
            [[0.0, -inf, 2.0], [1.0, 0.0, -inf]],
        ),
        "one class": ([[3.0], [4.0]], [[1.0], [4.0]]),
        "equal logits": ([[2.0, 2.0, 2.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
        "one position": ([[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]),
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("case", extremes())
def test_extreme_logits_stay_finite(row, call, case, dtype, wide, monkeypatch):
    if wide:
        as_if_wide(monkeypatch)
    student, teacher = (torch.tensor(x, dtype=dtype) for x in extremes()[case])
    loss = row.make()
    labels = torch.zeros(len(student), dtype=torch.int64)
    if case == "one class" and not row.single:
        with pytest.raises(ValueError, match=r"one class on axis dim=-1.*Use BernoulliKL"):
            call(loss, student, teacher)
        return
    for kind in ("mean", "sum") if row.per_position else ("mean",):
        value, gradient = with_gradient(
            call, row.make(reduction=kind), student, teacher, None, labels
        )
        assert value.isfinite()
        # float16 cannot hold the gradient of a squared difference of 20000.
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_types_are_computed_in_float32(row, call, dtype):
    student, teacher = pair(8, 50, dtype=dtype)
    value, gradient = with_gradient(call, row.make(), student, teacher)
    exact, exact_gradient = with_gradient(call, row.make(), student.double(), teacher.double())
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert value.item() == pytest.approx(exact.item(), rel=2e-5)
    atol = (30 if dtype == torch.float32 else 3) * torch.finfo(
        dtype
    ).eps * exact_gradient.abs().max().item() + 1e-9
    torch.testing.assert_close(gradient.double(), exact_gradient, rtol=0, atol=atol)


def test_float64_and_mixed_types(row, call):
    student, teacher = pair(4, 5)
    assert call(row.make(), student, teacher).dtype == torch.float64
    mixed = call(row.make(), student.float(), teacher.bfloat16())
    assert mixed.dtype == torch.float32
    expected = call(row.make(), student.float(), teacher.bfloat16().float())
    torch.testing.assert_close(mixed, expected)


def test_layout_does_not_matter(row, call):
    student, teacher = pair(3, 4, 5)
    expected = with_gradient(call, row.make(), student, teacher)
    strided = student.movedim(0, 1).contiguous().movedim(0, 1)
    assert not strided.is_contiguous()
    torch.testing.assert_close(with_gradient(call, row.make(), strided, teacher), expected)
    torch.testing.assert_close(
        call(row.make(), student.expand(3, 4, 5), teacher.flip(0).flip(0)), expected[0]
    )


@pytest.mark.parametrize("dim", [0, 1, -2])
def test_dim(row, call, dim):
    student, teacher = pair(3, 4, 5)
    labels = torch.arange(60 // student.shape[dim]) % student.shape[dim]
    moved = [x.movedim(dim, -1) for x in (student, teacher)]
    labels = labels.reshape(moved[0].shape[:-1])
    value, gradient = with_gradient(call, row.make(dim=dim), student, teacher, None, labels)
    expected = with_gradient(call, row.make(), *moved, None, labels)
    torch.testing.assert_close((value, gradient.movedim(dim, -1)), expected)


def test_reductions(row, call):
    student, teacher = pair(2, 3, 5)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    if not row.per_position:
        with pytest.raises(ValueError, match="reduction must be 'mean' for DIST"):
            row.make(reduction="sum")
        return
    mean, total, batchmean, terms = (
        call(row.make(reduction=kind), student, teacher, mask)
        for kind in ("mean", "sum", "batchmean", "none")
    )
    torch.testing.assert_close(total, 5 * mean)
    torch.testing.assert_close(batchmean, total / 2)
    torch.testing.assert_close(terms.sum(), total)
    if not row.sum_of_losses or row.per_class:
        assert terms.shape == (student.shape if row.per_class else mask.shape)
    assert not terms[~mask].any()


def test_no_gradient_is_computed_where_none_is_wanted(row, call):
    student, teacher = pair(4, 5)
    expected = call(row.make(), student, teacher)
    with torch.no_grad():
        value = call(row.make(), student.requires_grad_(), teacher)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected)


def test_module_has_no_state_and_copies(row, call):
    loss = row.make()
    assert loss.state_dict() == {}
    assert not list(loss.parameters())
    student, teacher = pair(4, 5)
    for twin in (
        pickle.loads(pickle.dumps(loss)),
        copy.deepcopy(loss),
        eval(repr(loss), vars(losses)),
    ):
        assert repr(twin) == repr(loss)
        assert torch.equal(call(twin, student, teacher), call(loss, student, teacher))


def test_functional_form(row, call):
    if row.function is None:
        pytest.skip("covered by another row, or has no functional form")
    student, teacher = pair(4, 5)
    function = getattr(losses, row.function)
    assert row.function in losses.__all__
    extra = {"labels": torch.arange(4)} if row.labels else {}
    value = function(student, teacher, **extra)
    torch.testing.assert_close(value, call(row.make(), student, teacher, None, torch.arange(4)))


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_without_a_graph_break(row, call, masked):
    student, teacher = pair(6, 5)
    mask = torch.tensor([1, 0, 1, 1, 0, 1]).bool() if masked else None
    loss = row.make()
    torch.compiler.reset()
    compiled = torch.compile(
        lambda s: call(loss, s, teacher, mask), fullgraph=True, backend="aot_eager"
    )
    student = student.requires_grad_()
    value = compiled(student)
    (gradient,) = torch.autograd.grad(value, student)
    expected = with_gradient(call, loss, student, teacher, mask)
    torch.testing.assert_close((value.detach(), gradient), expected)


def test_double_backward_works_or_says_no(row, call):
    student, teacher = pair(4, 5)
    student = student.requires_grad_()
    for reduction in ("mean", "none") if row.per_position else ("mean",):
        value = call(row.make(reduction=reduction), student, teacher).sum()
        if row.chunked and reduction == "mean":
            # At once: of what a graph does not know, autograd takes the derivative for zero
            with pytest.raises(RuntimeError, match=r"twice, .*Use reduction='none'"):
                torch.autograd.grad(value, student, create_graph=True)
        else:
            (gradient,) = torch.autograd.grad(value, student, create_graph=True)
            gradient.square().sum().backward()


def test_autocast_changes_nothing(row, call):
    student, teacher = (logits.float() for logits in pair(128, 300))
    expected = with_gradient(call, row.make(), student, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = with_gradient(call, row.make(), student, teacher)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_graph_can_be_kept(row, call):
    student, teacher = pair(4, 5)
    student = student.requires_grad_()
    value = 3.0 * call(row.make(), student, teacher)
    first = torch.autograd.grad(value, student, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, student), first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, student)


def test_temperature(row, call):
    if not row.tempered:
        pytest.skip("has no temperature")
    student, teacher = pair(4, 5)
    loss = row.make(temperature=lambda state: state)
    loss.resolve(3.0)
    assert loss.temperature == 3.0
    expected = call(row.make(temperature=3.0), student, teacher)
    torch.testing.assert_close(call(loss, student, teacher), expected)
    assert call(row.make(temperature=1.5), student, teacher) != expected
    with pytest.raises(ValueError, match="temperature must be finite and greater than 0"):
        row.make(temperature=0.0)


def test_wrong_shapes_say_so(row, call):
    with pytest.raises(ValueError, match="one shape, got"):
        call(row.make(), torch.zeros(4, 5), torch.zeros(4, 6))
    with pytest.raises(ValueError, match="mask must have the shape"):
        call(row.make(), torch.zeros(4, 5), torch.zeros(4, 5), torch.ones(3).bool())
