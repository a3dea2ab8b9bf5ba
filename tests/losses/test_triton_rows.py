"""The kernel that a GPU runs: interpreted on a CPU against the roster, and compiled without a GPU.

    TRITON_INTERPRET=1 pytest tests/losses/test_triton_rows.py

Triton reads the variable when it is imported, so that the interpreted half needs a process of its
own and is skipped in the others.
"""

import copy
import os

import numpy as np
import pytest
import torch

from composer_distill import losses
from composer_distill.losses import fused_rows, kernel
from composer_distill.losses.kl_divergence import FORWARD_KL
from composer_distill.losses.softened import Divergence
from composer_distill.telemetry.values import divergence_and_entropies, top1_agreement

pytest.importorskip("triton")
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)
compiled = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="an interpreted kernel cannot be compiled"
)
KERNELS = {
    "KLDivergence",
    "ReverseKLDivergence",
    "JensenShannonDivergence",
    "JensenShannonDivergence scaled",
    "SkewKLDivergence",
    "ReverseSkewKLDivergence",
    "AlphaBetaDivergence",
    "TotalVariation",
    "SoftCrossEntropy",
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Let few classes be several blocks, and forget what earlier tests found."""
    monkeypatch.setattr(fused_rows, "_BLOCK", 8)
    monkeypatch.setattr(fused_rows, "_verdicts", {})
    monkeypatch.setattr(fused_rows, "_last", None)


@pytest.fixture
def runs(monkeypatch):
    """Count the kernel's runs on a test's own rows."""
    counted = []
    run = fused_rows.run

    def counting(student, teacher, index, divergence, **kwargs):
        if student.shape[0] != fused_rows._CHECKED_ROWS:
            counted.append(divergence.formula.kernel)
        return run(student, teacher, index, divergence, **kwargs)

    monkeypatch.setattr(fused_rows, "run", counting)
    return counted


@pytest.fixture(params=sorted(KERNELS))
def divergence(request, roster):
    return roster[request.param]


def logits(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return (2.0 * torch.randn(*shape, generator=generator)).to(dtype)


def value_and_gradient(loss, student, teacher, mask=None):
    student = student.detach().clone().requires_grad_()
    value = loss(student, teacher, mask=mask)
    value.backward()
    return value.item(), student.grad.double()


def exact(loss, student, teacher, mask=None):
    """Return the same by the chunked path in float64, which has the roster's own tests."""
    return value_and_gradient(loss, student.double(), teacher.double(), mask)


def close(found, expected, dtype=torch.float32):
    value, gradient = found
    assert value == pytest.approx(expected[0], rel=2e-6, abs=1e-7)
    error = (gradient - expected[1]).abs().max() / expected[1].abs().max().clamp(min=1e-30)
    assert error < 3e-6 + (0 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps)


@interpreted
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_value_is_the_references(divergence, temperature, runs):
    loss = divergence.make()
    student, teacher = logits(5, 21), logits(5, 21, seed=1)
    s, t = student.double().numpy(), teacher.double().numpy()
    expected = divergence.reference(s, t, np.zeros(5, int)).mean()
    assert loss(student, teacher).item() == pytest.approx(expected, rel=3e-6)
    loss.temperature = temperature
    close(value_and_gradient(loss, student, teacher), exact(loss, student, teacher))
    assert len(runs) == 2


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 37])
def test_each_type_and_width(divergence, dtype, classes, runs):
    loss = divergence.make()
    student, teacher = logits(4, classes, dtype=dtype), logits(4, classes, seed=1, dtype=dtype)
    found = value_and_gradient(loss, student, teacher)
    expected = exact(loss, student, teacher)
    assert found[0] == pytest.approx(expected[0], rel=5e-6, abs=1e-6)
    close(found, expected, dtype)
    assert runs


@interpreted
def test_layouts_masks_and_reductions(divergence, runs):
    teacher = logits(2, 3, 11, seed=1)
    mask = torch.tensor([[True, False, True], [False, True, True]])
    across, apart = logits(11, 3, 2).permute(2, 1, 0), logits(2, 6, 22)[:, ::2, ::2]
    for reduction, student in (("mean", across), ("sum", apart), ("batchmean", across)):
        loss = divergence.make(reduction=reduction)
        kept = None if reduction == "sum" else mask
        found = value_and_gradient(loss, student, teacher, kept)
        close(found, exact(loss, student, teacher, kept))
    student = logits(2, 3, 11)
    last, first = divergence.make(), divergence.make(dim=1)
    moved = value_and_gradient(first, student.movedim(-1, 1), teacher.movedim(-1, 1))
    close((moved[0], moved[1].movedim(1, -1)), exact(last, student, teacher))
    assert runs


@interpreted
def test_classes_at_minus_infinity(divergence):
    loss, student, teacher = divergence.make(), logits(4, 12), logits(4, 12, seed=1)
    teacher[0, :9] = teacher[1, 3] = -torch.inf
    student[1, 3] = student[0, 2] = -torch.inf
    close(value_and_gradient(loss, student, teacher), exact(loss, student, teacher))


@interpreted
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_and_infinity_come_out(divergence, bad):
    for at in (0, 1):
        pair = [logits(4, 12), logits(4, 12, seed=1)]
        pair[at][2, 5] = bad
        assert not np.isfinite(value_and_gradient(divergence.make(), *pair)[0])


@interpreted
def test_huge_logits_stay_finite(divergence):
    student, teacher = logits(4, 12) * 1e4, logits(4, 12, seed=1) * 1e4
    found = value_and_gradient(divergence.make(), student, teacher)
    close(found, exact(divergence.make(), student, teacher))


@interpreted
@pytest.mark.parametrize("name", sorted(KERNELS - {"SoftCrossEntropy", "TotalVariation"}))
@pytest.mark.parametrize("apart", [1e-2, 1e-4])
def test_near_agreement_the_value_keeps_its_digits(roster, name, apart):
    teacher = logits(6, 40, seed=1)
    student = teacher + apart * logits(6, 40)
    loss = roster[name].make(temperature=1.0)
    # The logits' own rounding, and the share of it in their log-sum-exps
    expected = exact(loss, student, teacher)[0]
    assert loss(student, teacher).item() == pytest.approx(expected, rel=2e-4)
    assert loss(teacher, teacher.clone()).item() == 0.0


@interpreted
def test_the_contract_of_a_divergence(divergence, runs):
    """0 at agreement and nowhere else, a direction, and no change to what it is given."""
    loss, student, teacher = divergence.make(), logits(5, 19), logits(5, 19, seed=1)
    copies = student.clone(), teacher.clone()
    there, gradient = value_and_gradient(loss, student, teacher)
    back, _ = value_and_gradient(loss, teacher, student)
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])
    assert (there == pytest.approx(back, rel=1e-5)) == divergence.symmetric
    assert there > 1e-3
    assert gradient.sum(-1).abs().max() < 1e-5  # of a softmax, a shift of all logits is no change
    value, gradient = value_and_gradient(loss, student, student.clone())
    assert (abs(value) < 1e-6) == divergence.zero_at_identity
    assert gradient.abs().max() < 1e-6
    assert set(runs) == {divergence_of(loss)}


def divergence_of(loss):
    """The kernel's name of a loss, by the class's own."""
    return (
        loss.name.removesuffix("_divergence").removesuffix("_kl").upper().replace("KL", "FORWARD")
    )


@interpreted
def test_all_rows_masked_count_nothing(divergence):
    student, teacher = logits(4, 12), logits(4, 12, seed=1)
    value, gradient = value_and_gradient(divergence.make(), student, teacher, torch.zeros(4).bool())
    assert value == gradient.abs().max() == 0.0


@interpreted
def test_one_class_which_the_losses_refuse():
    student, teacher = logits(4, 1), logits(4, 1, seed=1)
    found = fused_rows.run(student, teacher, None, Divergence(FORWARD_KL, 1.0), wanted=True)
    assert found.gradient is not None
    assert found.values.abs().max() == found.gradient.abs().max() == 0.0


@interpreted
def test_rows_far_beyond_two_to_the_31(tmp_path):
    """A sparse file stands for a tensor that no test could hold."""
    size = 2**31 + 4096
    path = str(tmp_path / "rows")
    with open(path, "wb") as file:
        file.truncate(2 * size)
    whole = torch.from_file(path, shared=True, size=size, dtype=torch.float16)
    student = whole.as_strided((3, 50), (2**30, 1))
    student.copy_(logits(3, 50, dtype=torch.float16))
    teacher, dense = logits(3, 50, seed=1, dtype=torch.float16), student.clone()
    divergence = Divergence(FORWARD_KL, 1.0)
    found = fused_rows.run(student, teacher, None, divergence, wanted=True)
    expected = kernel.chunked(dense.double(), teacher.double(), None, divergence, True)
    assert found.values.sum().item() == pytest.approx(expected.total.item(), rel=1e-5)


@interpreted
def test_a_second_backward_of_a_kept_graph():
    student, teacher = logits(4, 12).requires_grad_(), logits(4, 12, seed=1)
    value = 3.0 * losses.KLDivergence(1.0)(student, teacher)
    (once,) = torch.autograd.grad(value, student, retain_graph=True)
    (twice,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(once, twice, rtol=0, atol=0)


@interpreted
def test_the_fused_loss_runs_on_it(runs):
    hidden = [logits(6, 5), logits(6, 7, seed=1)]
    weights = [logits(19, 5, seed=2), logits(19, 7, seed=3)]

    def run(kind):
        h, w = (x.to(kind).clone().requires_grad_() for x in (hidden[0], weights[0]))
        value = losses.fused_linear_kl(h, w, hidden[1].to(kind), weights[1].to(kind))
        return [x.double() for x in (value.detach(), *torch.autograd.grad(value, (h, w)))]

    torch.testing.assert_close(run(torch.float32), run(torch.float64), rtol=1e-5, atol=1e-6)
    assert runs == ["FORWARD"]


@interpreted
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_telemetry_comes_from_the_same_pass(runs, temperature):
    student, teacher = logits(6, 30).requires_grad_(), logits(6, 30, seed=1)
    losses.ReverseKLDivergence(temperature)(student, teacher).backward()
    log_q, log_p = student.detach().double().log_softmax(-1), teacher.double().log_softmax(-1)
    expected = [
        (log_p.exp() * (log_p - log_q)).sum(-1).mean(),
        -(log_q.exp() * log_q).sum(-1).mean(),
        -(log_p.exp() * log_p).sum(-1).mean(),
    ]
    found = [value.double() for value in divergence_and_entropies(student, teacher)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    agreement = (student.argmax(-1) == teacher.argmax(-1)).float().mean()
    assert top1_agreement(student, teacher) == agreement
    assert runs == ["REVERSE"] + ["FORWARD"] * (temperature != 1.0)


@interpreted
def test_telemetry_never_tells_of_other_logits():
    student, teacher = logits(6, 30), logits(6, 30, seed=1)
    before = divergence_and_entropies(student, teacher)
    student.mul_(2.0)
    after = divergence_and_entropies(student, teacher)
    assert before[0] != after[0]
    del student
    fresh = logits(6, 30, seed=5)
    torch.testing.assert_close(
        divergence_and_entropies(fresh, teacher)[0],
        losses.KLDivergence(1.0)(fresh, teacher),
    )


@interpreted
def test_the_first_of_equal_classes():
    student, teacher = torch.zeros(4, 30), torch.zeros(4, 30)
    student[0, 9] = student[0, 20] = student[1, 3] = teacher[1, 3] = 1.0
    told = kernel.told(FORWARD_KL, student, teacher)
    assert told is not None
    assert told[1].tolist() == [student.argmax(-1).tolist(), teacher.argmax(-1).tolist()]


@interpreted
@pytest.mark.parametrize("fault", ["wrong", "raises"])
def test_a_kernel_that_does_not_agree_steps_aside(monkeypatch, caplog, fault):
    right = fused_rows.run

    def faulty(*args, **kwargs):
        if fault == "raises":
            raise RuntimeError("no compiler here")
        found = right(*args, **kwargs)
        return found._replace(values=found.values * 1.01)

    loss, student, teacher = losses.KLDivergence(1.0), logits(4, 12), logits(4, 12, seed=1)
    monkeypatch.setattr(fused_rows, "run", faulty)
    for _ in range(2):
        close(value_and_gradient(loss, student, teacher), exact(loss, student, teacher))
    (message,) = [record.getMessage() for record in caplog.records]
    assert "FORWARD" in message
    assert "chunked path is used instead" in message


@interpreted
def test_the_check_of_itself_moves_no_stream_and_leaves_the_logits(runs):
    student, teacher = logits(4, 12), logits(4, 12, seed=1)
    copies = copy.deepcopy((student, teacher))
    state = torch.random.get_rng_state()
    value_and_gradient(losses.KLDivergence(), student, teacher)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


def test_on_a_cpu_the_kernel_is_not_chosen(monkeypatch):
    monkeypatch.setattr(fused_rows, "_INTERPRETED", False)
    assert not fused_rows.can_run(FORWARD_KL, logits(4, 12), logits(4, 12))


SIGNATURE = {
    **dict.fromkeys(("student", "teacher", "gradient"), "*{0}"),
    **dict.fromkeys(("values", "scale", "told"), "*fp32"),
    **dict.fromkeys(("index", "first"), "*i64"),
    **dict.fromkeys(("count", "classes"), "i32"),
    **dict.fromkeys(("student_stride", "teacher_stride", "gradient_stride"), "i64"),
    **dict.fromkeys(("inverse", "slope", "alpha", "beta"), "fp32"),
}


@compiled
@pytest.mark.parametrize(
    ("kind", "dtype", "capability"),
    [("FORWARD", "bf16", 90), ("JENSEN_SHANNON", "fp16", 80)],
)
def test_it_compiles_for_a_gpu_that_is_not_here(kind, dtype, capability):
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.compiler")
    target = pytest.importorskip("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    from composer_distill.losses import triton_rows

    constants = {
        **{"student_step": 1, "teacher_step": 1, "kind": getattr(triton_rows, kind).value},
        **{"indexed": True, "wanted": True, "scaled": dtype == "fp16", "tells": True},
        "block": 1024,
    }
    names = triton_rows.rows.arg_names
    source = compiler.ASTSource(
        fn=triton_rows.rows,
        signature={name: SIGNATURE.get(name, "constexpr").format(dtype) for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
    )
    built = triton.compile(source, target=target, options={"num_warps": 4})
    assert built.asm["cubin"]
