"""FusedLinearKL against the unfused divergence."""

import copy
import pickle
import sys

import pytest
import torch

from composer_distill.losses import FusedLinearKL, KLDivergence, fused_linear_kl


def tensors(dtype=torch.float64, leading=(9,)):
    generator = torch.Generator().manual_seed(0)
    shapes = ((*leading, 6), (11, 6), (11,), (*leading, 4), (11, 4), (11,))
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    for leaf in made[:3]:
        leaf.requires_grad_()
    return made


def both(reduction="mean", temperature=2.0, mask=None, dtype=torch.float64, leading=(9,)):
    """Return (value, gradients) of the fused and of the unfused loss."""
    s, v, b, t, w, c = tensors(dtype, leading)
    fused = FusedLinearKL(temperature, reduction)(s, v, t, w, mask, student_bias=b, teacher_bias=c)
    unfused = KLDivergence(temperature, reduction=reduction)(s @ v.T + b, t @ w.T + c, mask)
    return [(3 * x, *torch.autograd.grad(3 * x, (s, v, b))) for x in (fused, unfused)]


@pytest.fixture(params=[1 << 23, 22])
def entries(request, monkeypatch):
    module = sys.modules[fused_linear_kl.__module__]
    monkeypatch.setattr(module, "_ENTRIES", request.param)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("reduction", ["mean", "sum", "batchmean"])
@pytest.mark.parametrize("leading", [(9,), (3, 3)])
def test_equals_the_unfused_loss(reduction, leading):
    torch.testing.assert_close(*both(reduction, leading=leading))


@pytest.mark.usefixtures("entries")
def test_a_masked_position_is_a_removed_one():
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()
    torch.testing.assert_close(*both(mask=mask))
    torch.testing.assert_close(*both(mask=torch.zeros(9).bool()))


def test_float32_within_rounding_and_bfloat16_nearby():
    torch.testing.assert_close(*both(dtype=torch.float32))
    fused, unfused = both(dtype=torch.bfloat16)
    assert fused[0].dtype == torch.float32
    assert [g.dtype for g in fused[1:]] == [torch.bfloat16] * 3
    for ours, theirs in zip(fused[1:], unfused[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)


def test_gradcheck():
    s, v, b, t, w, c = tensors()
    assert torch.autograd.gradcheck(
        lambda s, v, b: fused_linear_kl(s, v, t, w, student_bias=b, teacher_bias=c), (s, v, b)
    )


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("caps", [(1.5, None), (None, 2.5), (1.5, 2.5)])
def test_capped_logits_by_the_formula(caps):
    s, v, b, t, w, c = tensors()
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()

    def logits(product, cap):
        return product if cap is None else cap * torch.tanh(product / cap)

    student, teacher = logits(s @ v.T + b, caps[0])[mask], logits(t @ w.T + c, caps[1])[mask]
    p, log_q = (teacher / 2.0).softmax(-1), (student / 2.0).log_softmax(-1)
    expected = 4.0 * (p * (p.log() - log_q)).sum(-1).mean()
    names = {"student_cap": caps[0], "teacher_cap": caps[1], "temperature": 2.0}
    found = fused_linear_kl(s, v, t, w, mask, student_bias=b, teacher_bias=c, **names)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(value, (s, v, b)) for value in (found, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.usefixtures("entries")
def test_a_watch_sees_the_logits_of_each_kept_position_once():
    s, v, b, t, w, _ = tensors()
    mask = torch.tensor([1, 0, 1, 1, 1, 0, 1, 1, 1]).bool()
    seen = []
    fused_linear_kl(
        s, v, t, w, mask, student_bias=b, student_cap=2.0,
        watch=lambda *both: seen.append([one.clone() for one in both]),
    )  # fmt: skip
    student, teacher = (torch.cat(each) for each in zip(*seen, strict=True))
    torch.testing.assert_close(student, 2.0 * torch.tanh((s @ v.T + b)[mask] / 2.0).detach())
    torch.testing.assert_close(teacher, (t @ w.T)[mask])


def test_zero_at_identity_and_direction():
    s, v, _, t, w, _ = (x.detach() for x in tensors())
    assert fused_linear_kl(s, v, s, v).item() == 0.0
    there, back = fused_linear_kl(s, v, t, w), fused_linear_kl(t, w, s, v)
    assert not torch.allclose(there, back)


def test_only_what_needs_a_gradient_gets_one():
    s, v, _, t, w, _ = tensors()
    w.requires_grad_()
    v = v.detach()
    fused_linear_kl(s, v, t, w).backward()
    assert s.grad is not None
    assert w.grad is None
    assert v.grad is None
    with torch.no_grad():
        assert not fused_linear_kl(s, v, t, w).requires_grad


def test_the_graph_can_be_kept():
    s, v, _, t, w, _ = tensors()
    value = fused_linear_kl(s, v, t, w)
    first = torch.autograd.grad(value, (s, v), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, (s, v)), first)


def test_module():
    loss = FusedLinearKL(temperature=abs)
    loss.resolve(-2.0)
    assert loss.temperature == 2.0
    loss = FusedLinearKL(2.0)
    assert repr(loss) == "FusedLinearKL(temperature=2.0, reduction='mean')"
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert repr(twin) == repr(loss)
    assert loss.state_dict() == {}


def test_compiles_without_a_graph_break():
    s, v, _, t, w, _ = tensors()
    compiled = torch.compile(
        lambda s: fused_linear_kl(s, v, t, w), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(s), fused_linear_kl(s, v, t, w))


def test_wrong_arguments():
    s, v, b, t, w, _ = tensors()
    with pytest.raises(ValueError, match=r"reduction must be .* got 'none'"):
        FusedLinearKL(reduction="none")
    with pytest.raises(TypeError, match="student_hidden must be a floating-point tensor, got list"):
        fused_linear_kl([1.0], v, t, w)
    with pytest.raises(ValueError, match=r"must share H, got \(9, 6\) and \(11, 4\)"):
        fused_linear_kl(s, w, t, w)
    with pytest.raises(ValueError, match="same positions"):
        fused_linear_kl(s[:3], v, t, w)
    with pytest.raises(ValueError, match="same classes, got 11 and 10"):
        fused_linear_kl(s, v, t, w[:10])
    with pytest.raises(ValueError, match="student_bias must have the shape"):
        fused_linear_kl(s, v, t, w, student_bias=b[:3])
    for cap in (0.0, -1.0, True, "30", float("inf")):
        with pytest.raises(ValueError, match="teacher_cap must be a positive number or None"):
            fused_linear_kl(s, v, t, w, teacher_cap=cap)
    with pytest.raises(TypeError, match="mask must be boolean"):
        fused_linear_kl(s, v, t, w, torch.ones(9))


def test_a_second_derivative_says_no():
    h, w = torch.randn(5, 4, requires_grad=True), torch.randn(6, 4)
    value = FusedLinearKL()(h, w, torch.randn(5, 3), torch.randn(6, 3))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, h, create_graph=True)
