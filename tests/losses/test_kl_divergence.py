"""KLDivergence against SciPy, closed forms and torch."""

import math

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax
from torch.nn import functional as F

from composer_distill.losses import KLDivergence, kl_divergence


def logits(*shape, seed=0, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def scipy_rows(student, teacher, temperature):
    p = softmax(teacher.numpy() / temperature, axis=-1)
    q = softmax(student.numpy() / temperature, axis=-1)
    return temperature**2 * rel_entr(p, q).sum(-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 5, 7), (2, 3, 2, 7)])
def test_mean_is_scipys_mean_over_positions(shape, temperature):
    student, teacher = logits(*shape), logits(*shape, seed=1)
    ours = KLDivergence(temperature)(student, teacher)
    assert ours.item() == pytest.approx(scipy_rows(student, teacher, temperature).mean(), rel=1e-12)


def test_value_and_gradient_tell_forward_from_reverse():
    teacher = torch.tensor([[0.0, math.log(3.0)]])
    student = torch.zeros(1, 2, requires_grad=True)
    loss = KLDivergence(temperature=1.0)(student, teacher)
    loss.backward()
    # KL((1/4, 3/4) || (1/2, 1/2)); the other direction is 0.1438.
    assert loss.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-6)
    # q - p; the other direction has -(ln 3)/4 and +(ln 3)/4 = 0.2747.
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[0.25, -0.25]]))


@pytest.mark.parametrize("shape", [(4, 9), (2, 3, 9)])
def test_exactly_zero_at_identity(shape):
    z = logits(*shape, dtype=torch.float32)
    assert KLDivergence()(z, z.clone()).item() == 0.0


@pytest.mark.parametrize("closeness", [1e-2, 1e-3, 1e-4, 1e-5])
@pytest.mark.parametrize("classes", [50, 1000])
def test_near_agreement_it_is_as_exact_as_torchs(classes, closeness):
    ours, torchs = [], []
    for seed in range(20):
        student = logits(64, classes, seed=seed, dtype=torch.float32, scale=5.0)
        teacher = student + logits(64, classes, seed=seed + 99, dtype=torch.float32) * closeness
        exact = scipy_rows(student.double(), teacher.double(), 1.0).mean()
        theirs = F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True
        )
        value = KLDivergence(1.0)(student.requires_grad_(), teacher).item()
        assert value >= 0.0
        ours.append(abs(value - exact))
        torchs.append(abs(theirs.item() - exact))
    # Of few classes ours are torch's operations, but for the order of the sum
    assert np.mean(ours) < (0.5 if classes == 1000 else 1.5) * np.mean(torchs)


def test_high_temperature_gives_half_the_centred_logit_mse():
    student, teacher = logits(6, 10), logits(6, 10, seed=1)
    difference = student - teacher
    centred = difference - difference.mean(-1, keepdim=True)
    limit = 0.5 * centred.pow(2).mean().item()
    assert KLDivergence(1e4)(student, teacher).item() == pytest.approx(limit, rel=1e-3)


def test_temperature_squared_keeps_the_size_of_the_gradient():
    norms = []
    for temperature in (1.0, 8.0, 64.0):
        student = logits(8, 10).requires_grad_()
        KLDivergence(temperature)(student, logits(8, 10, seed=1)).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) < 3 * min(norms)


@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_other_reductions_are_torchs(reduction):
    student, teacher = logits(3, 4, 5), logits(3, 4, 5, seed=1)
    theirs = F.kl_div(student.log_softmax(-1), teacher.softmax(-1), reduction=reduction)
    ours = KLDivergence(1.0, reduction=reduction)(student, teacher)
    torch.testing.assert_close(ours, theirs)


def test_mean_is_torchs_batchmean_on_two_axes_and_not_its_mean():
    student, teacher = logits(6, 5), logits(6, 5, seed=1)
    log_q, p = student.log_softmax(-1), teacher.softmax(-1)
    ours = KLDivergence(1.0)(student, teacher)
    torch.testing.assert_close(ours, F.kl_div(log_q, p, reduction="batchmean"))
    torch.testing.assert_close(ours / 5, (F.kl_div(log_q, p, reduction="none").mean()))


@pytest.mark.parametrize("dim", [0, 1, 2, -2])
def test_dim_is_the_axis_of_the_softmax(dim):
    student, teacher = logits(3, 4, 5), logits(3, 4, 5, seed=1)
    expected = scipy_rows(student.movedim(dim, -1), teacher.movedim(dim, -1), 2.0).mean()
    assert KLDivergence(2.0, dim)(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    older = KLDivergence(2.0, softmax_dim=dim)
    assert older.dim == dim
    assert older(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_is_autograds_and_only_the_students():
    student = logits(4, 6).requires_grad_()
    teacher = logits(4, 6, seed=1).requires_grad_()
    kl_divergence(student, teacher, temperature=3.0).backward()
    assert teacher.grad is None
    expected = 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32(dtype):
    student = logits(6, 3000, dtype=dtype).requires_grad_()
    teacher = logits(6, 3000, seed=1, dtype=dtype)
    loss = KLDivergence(2.0)(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert student.grad is not None
    assert student.grad.dtype == dtype
    exact = student.detach().double().requires_grad_()
    KLDivergence(2.0)(exact, teacher.double()).backward()
    expected = scipy_rows(student.detach().double(), teacher.double(), 2.0).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(
        student.grad.double(), exact.grad, rtol=1e-2, atol=1e-3 * exact.grad.abs().max().item()
    )


def test_float64_stays_float64():
    assert KLDivergence()(logits(2, 3), logits(2, 3, seed=1)).dtype == torch.float64


def test_mask_is_removal():
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    mask = torch.tensor([[True, False, True], [False, False, True]])
    masked = KLDivergence()(student, teacher, mask=mask)
    torch.testing.assert_close(masked, KLDivergence()(student[mask], teacher[mask]))


def test_a_class_ruled_out_by_the_student_alone_is_a_huge_loss():
    student = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    loss = KLDivergence(1.0)(student, torch.zeros(1, 2))
    loss.backward()
    assert loss.item() > 1e29
    assert student.grad[0, 0].item() == 0.5
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan])
def test_temperature_must_be_positive_and_finite(bad):
    with pytest.raises(ValueError, match=r"finite and greater than 0, got .*2 to 8"):
        KLDivergence(temperature=bad)
    with pytest.raises(ValueError, match="temperature must be"):
        kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2), temperature=bad)


@pytest.mark.parametrize("bad", ["4", None, True, [4.0]])
def test_temperature_must_be_a_number(bad):
    with pytest.raises(TypeError, match="temperature must be a number, got"):
        KLDivergence(temperature=bad)


def test_numpy_numbers_are_numbers():
    assert KLDivergence(np.float32(2.0)).temperature == 2.0


def test_wrong_constructor_arguments():
    with pytest.raises(ValueError, match=r"reduction must be one of 'mean'.*got 'avg'.*Use 'mean'"):
        KLDivergence(reduction="avg")
    with pytest.raises(TypeError, match=r"dim must be an integer, got 1.0"):
        KLDivergence(dim=1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="dim and softmax_dim are one argument"):
        KLDivergence(dim=1, softmax_dim=2)


def test_wrong_inputs():
    loss, z = KLDivergence(), torch.zeros(2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    cases = [
        (TypeError, r"student must be a tensor of logits, got list", ([0.0], z, None)),
        (TypeError, r"teacher must be a tensor of logits, got NoneType", (z, None, None)),
        (
            TypeError,
            r"teacher must hold floating-point.*torch.int64",
            (z, z.long(), None),
        ),
        (
            ValueError,
            r"got \(2, 3, 4\) and \(2, 3, 5\)",
            (z, torch.zeros(2, 3, 5), None),
        ),
        (ValueError, r"dim=-1 does not exist in the student", (torch.tensor(0.0), z, None)),
        (ValueError, r"no class on axis dim=-1", (torch.zeros(2, 0), torch.zeros(2, 0), None)),
        (ValueError, r"one device, got cpu and meta", (z, z.to("meta"), None)),
        (TypeError, r"mask must be boolean.*got torch.int64.*mask.bool\(\)", (z, z, mask.long())),
        (TypeError, r"mask must be a tensor", (z, z, [True])),
        (ValueError, r"mask must have the shape \(2, 3\).*got \(3, 2\)", (z, z, mask.T)),
        (ValueError, r"mask must be on the logits' device cpu, got meta", (z, z, mask.to("meta"))),
    ]
    for kind, message, (student, teacher, chosen) in cases:
        with pytest.raises(kind, match=message):
            loss(student, teacher, mask=chosen)


def test_a_device_whose_values_cannot_be_read_gives_the_same(monkeypatch):
    student, teacher = torch.randn(6, 5).double(), torch.randn(6, 5).double()
    student[0, 1] = teacher[0, 1] = -torch.inf
    found = []
    for readable in (True, False):
        monkeypatch.setattr("composer_distill.losses.kernel.can_be_read", lambda _, r=readable: r)
        leaf = student.clone().requires_grad_()
        value = KLDivergence(2.0)(leaf, teacher)
        value.backward()
        found.append((value, leaf.grad))
    torch.testing.assert_close(*found)
    assert found[0][1].isfinite().all()
