"""What single losses promise beyond the shared contract."""

import math
from itertools import pairwise

import pytest
import torch

from composer_distill import losses as L


def pair(n=6, c=5):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n, c, generator=generator, dtype=torch.float64).unbind()


def far_apart():
    return torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])


def gradient(loss, student, teacher):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, teacher), student)[0]


def test_mixtures_are_bounded():
    for loss, bound in (
        (L.JensenShannonDivergence(0.5), math.log(2)),
        (L.SkewKLDivergence(0.1), -math.log(0.1)),
        (L.ReverseSkewKLDivergence(0.1), -math.log(0.1)),
        (L.TotalVariation(), 1.0),
    ):
        assert loss(*far_apart()).item() == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(("beta", "end"), [(0, L.KLDivergence(1.0)), (1, L.ReverseKLDivergence())])
def test_the_ends_of_the_scaled_jensen_shannon_are_the_kls(beta, end):
    student, teacher = pair()
    near = L.JensenShannonDivergence(abs(beta - 1e-6), scaled=True)
    at = L.JensenShannonDivergence(beta, scaled=True)
    torch.testing.assert_close(at(student, teacher), end(student, teacher))
    torch.testing.assert_close(near(student, teacher), end(student, teacher), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        gradient(near, student, teacher), gradient(end, student, teacher), rtol=1e-3, atol=1e-6
    )


def test_alpha_beta_tends_to_the_kls():
    student, teacher = pair()
    forward, reverse = L.AlphaBetaDivergence(1, 1e-6), L.AlphaBetaDivergence(1e-6, 1)
    for loss, limit in ((forward, L.KLDivergence(1.0)), (reverse, L.ReverseKLDivergence())):
        torch.testing.assert_close(
            loss(student, teacher), limit(student, teacher), rtol=1e-4, atol=0
        )


def test_adaptive_keeps_a_first_class_above_mu_in_the_head():
    teacher, student = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.3, 0.4, 0.3]]).log()
    # By hand: the gaps are 0.4, 0.2 and 0.2, so that half is the forward KL and half the reverse
    assert L.AdaptiveKLDivergence(mu=0.5)(student, teacher).item() == pytest.approx(
        0.34864, abs=1e-5
    )


def test_adaptive_gradient_is_that_of_its_two_kls_at_fixed_weights():
    student, teacher = pair(n=1, c=8)
    student, teacher = 0.3 * student, 0.3 * teacher
    forward, reverse = L.KLDivergence(1.0), L.ReverseKLDivergence()
    a, b = forward(student, teacher), reverse(student, teacher)
    w = (L.AdaptiveKLDivergence()(student, teacher) - b) / (a - b)
    assert 0.1 < w < 0.9
    expected = w * gradient(forward, student, teacher)
    expected += (1 - w) * gradient(reverse, student, teacher)
    torch.testing.assert_close(gradient(L.AdaptiveKLDivergence(), student, teacher), expected)


def test_ikl_at_the_setting_that_its_page_says_is_its_authors():
    """Their CIFAR setting: alpha 1, beta 8 and T 4, the first term a cross-entropy without T^2."""

    def theirs(student, teacher):
        answer, weight = (teacher / 4.0).softmax(-1), (teacher / 100.0).softmax(-1)
        cross_entropy = -(answer * (student / 4.0).log_softmax(-1)).sum(-1).mean()
        gaps = teacher.unsqueeze(-1) - teacher.unsqueeze(-2)
        gaps = gaps - (student.unsqueeze(-1) - student.unsqueeze(-2))
        pairs = 0.25 * gaps.square() * weight.unsqueeze(-1) * weight.unsqueeze(-2)
        return 1.0 * cross_entropy + 8.0 * pairs.sum((-2, -1)).mean()

    student, teacher = pair()
    ours = L.IKL(alpha=1 / 16, beta=8.0, temperature=4.0)
    torch.testing.assert_close(gradient(ours, student, teacher), gradient(theirs, student, teacher))


@pytest.mark.parametrize(
    ("classes", "authors", "here"), [(1000, 0.3017, 0.3014), (30_000, 0.500, 0.322)]
)
def test_the_epsilon_of_dists_authors_changes_what_its_page_says(classes, authors, here):
    def theirs(student, teacher):
        q, p = student.softmax(-1), teacher.softmax(-1)
        found = [], []
        for axis in (1, 0):
            x, y = (v - v.mean(axis, keepdim=True) for v in (q, p))
            product = x.norm(dim=axis) * y.norm(dim=axis)
            for values, epsilon in zip(found, (1e-8, 0.0), strict=True):
                values.append(1 - ((x * y).sum(axis) / (product + epsilon)).mean().item())
        return [sum(values) for values in found]

    generator = torch.Generator().manual_seed(0)
    teacher, noise = torch.randn(2, 32, classes, generator=generator).unbind()
    student = teacher + 0.5 * noise
    with_epsilon, without = theirs(student, teacher)
    assert with_epsilon == pytest.approx(authors, rel=5e-3)
    assert L.DIST()(student, teacher).item() == pytest.approx(without, rel=1e-4)
    assert without == pytest.approx(here, rel=5e-3)


NEAR = (
    L.ReverseKLDivergence, L.JensenShannonDivergence, L.SkewKLDivergence, L.ReverseSkewKLDivergence,
    L.AdaptiveKLDivergence, L.AlphaBetaDivergence,
)  # fmt: skip


@pytest.mark.parametrize("closeness", [1e-3, 1e-5])
@pytest.mark.parametrize("kind", NEAR)
def test_near_agreement_other_divergences_are_about_as_exact_as_torchs_kl(kind, closeness):
    ours, torchs = [], []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        student, noise = torch.randn(2, 64, 600, generator=generator).unbind()
        student = 5.0 * student
        teacher = student + closeness * noise
        wide = student.double(), teacher.double()
        exact, true = (loss(*wide).item() for loss in (kl_by_torch, kind(temperature=1.0)))
        torchs.append(abs(kl_by_torch(student, teacher).item() - exact))
        ours.append(abs(kind(temperature=1.0)(student.requires_grad_(), teacher).item() - true))
    assert sum(ours) < 4.0 * sum(torchs)  # of which the alpha-beta divergence takes 2.5


def kl_by_torch(student, teacher):
    log_probs = student.log_softmax(-1), teacher.log_softmax(-1)
    return torch.nn.functional.kl_div(*log_probs, reduction="batchmean", log_target=True)


def test_one_logit_is_the_kl_of_two():
    student, teacher = pair(c=1)
    two = [torch.cat([z, torch.zeros_like(z)], -1) for z in (student, teacher)]
    torch.testing.assert_close(
        L.BernoulliKL(3.0)(student, teacher), L.KLDivergence(temperature=3.0)(*two)
    )


def test_independent_labels_far_out_are_finite_and_exact():
    student = torch.tensor([[1e4, 1e4, -1e4, 0.0]], requires_grad=True)
    value = L.BernoulliKL()(student, torch.tensor([[1e4, -1e4, -1e4, -1e4]]))
    value.backward()
    assert value.item() == pytest.approx(1e4 + math.log(2.0), rel=1e-6)
    assert student.grad.tolist() == [[0.0, 1.0, 0.0, 0.5]]


def test_independent_labels_keep_their_digits_near_agreement():
    teacher = torch.linspace(-20.0, 20.0, 400).unsqueeze(0)
    student = teacher + 1e-3
    exact = L.BernoulliKL()(student.double(), teacher.double()).item()
    assert L.BernoulliKL()(student, teacher).item() == pytest.approx(exact, rel=0.1)


def test_soft_cross_entropy_has_the_gradient_of_the_kl():
    student, teacher = pair()
    torch.testing.assert_close(
        gradient(L.SoftCrossEntropy(), student, teacher),
        gradient(L.KLDivergence(), student, teacher),
    )


def test_dkd_with_the_teachers_own_weight_is_the_kl():
    student, teacher = pair(n=1)
    labels = torch.tensor([2])
    others = 1 - (teacher / 4).softmax(-1)[0, 2].item()
    dkd = L.DecoupledKD(alpha=1.0, beta=others)(student, teacher, labels=labels)
    torch.testing.assert_close(dkd, L.KLDivergence(4.0)(student, teacher))


def test_top_k_with_a_bucket_rises_to_the_kl():
    student, teacher = pair()
    values = [L.TopKKL(k)(student, teacher).item() for k in range(1, 6)]
    # With every class but one the bucket is that class, so that the last two may differ in rounding
    assert all(more - less > -1e-12 for less, more in pairwise(values))
    assert values[-1] == pytest.approx(L.KLDivergence(1.0)(student, teacher).item(), rel=1e-12)


def test_renormalised_top_k_at_agreement_is_the_log_of_the_mass():
    _, z = pair(n=1)
    mass = z.softmax(-1).topk(2).values.sum()
    torch.testing.assert_close(L.TopKKL(2, tail="renormalise")(z, z), -mass.log())


def test_invariances():
    student, teacher = pair()
    shifted = student + 3.0
    centred = L.LogitMSE(center=True)
    torch.testing.assert_close(centred(shifted, teacher), centred(student, teacher))
    assert L.LogitMSE()(shifted, teacher) != L.LogitMSE()(student, teacher)
    standardized = L.StandardizedLogits(L.KLDivergence(2.0))
    torch.testing.assert_close(
        standardized(5 * student + 1, teacher), standardized(student, teacher)
    )


@pytest.mark.parametrize("loss", [L.DecoupledKD(), L.NormalizedKD()])
def test_labels(loss):
    student, teacher = pair()
    labels = torch.tensor([0, 1, -100, 3, -100, 2])
    kept = labels >= 0
    torch.testing.assert_close(
        loss(student, teacher, labels=labels),
        loss(student[kept], teacher[kept], labels=labels[kept]),
    )
    with pytest.raises(ValueError, match="labels are needed by this loss, got None"):
        loss(student, teacher)
    with pytest.raises(ValueError, match="labels must be classes from 0 to 4, got 5"):
        loss(student, teacher, labels=torch.arange(6))
    with pytest.raises(TypeError, match=r"labels must be integer classes, got torch.float32"):
        loss(student, teacher, labels=labels.float())
    with pytest.raises(ValueError, match=r"labels must have the shape \(6,\)"):
        loss(student, teacher, labels=labels[:3])


def test_a_sum_passes_labels_and_schedules_on():
    loss = 0.5 * L.KLDivergence(temperature=float) + L.StandardizedLogits(
        L.DecoupledKD(temperature=float)
    )
    assert loss.needs_labels
    loss.resolve(3)
    student, teacher = pair()
    assert list(loss.parts(student, teacher, labels=torch.arange(6) % 5)) == [
        "kl_divergence",
        "standardized_logits",
    ]


def test_float16_gradients_keep_what_is_far_below_one():
    # 1 / 100 000 has one significant digit in float16, and a probability of 1e-9 none at all.
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 100_000, generator=generator).half().unbind()
    ours = gradient(lambda s, t: 2**14 * L.KLDivergence(1.0)(s, t), student, teacher).double()
    exact = gradient(
        lambda s, t: 2**14 * L.KLDivergence(1.0)(s, t), student.double(), teacher.double()
    )
    assert ((ours - exact).norm() / exact.norm()).item() < 1e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L.JensenShannonDivergence(0.0), "beta must be between 0 and 1.*got 0.0"),
        (lambda: L.JensenShannonDivergence(1.5, scaled=True), "beta must be from 0 to 1, got 1.5"),
        (lambda: L.SkewKLDivergence(0.0), "alpha must be between 0 and 1, got 0.0"),
        (lambda: L.ReverseSkewKLDivergence(1.0), "alpha must be between 0 and 1, got 1.0"),
        (lambda: L.AdaptiveKLDivergence(1.1), "mu must be from 0 to 1, got 1.1"),
        (lambda: L.AlphaBetaDivergence(0.0), "alpha must be finite and greater than 0, got 0.0"),
        (lambda: L.DecoupledKD(beta=math.nan), "beta must be finite, got nan"),
        (lambda: L.NormalizedKD(math.inf), "gamma must be finite, got inf"),
        (lambda: L.DIST(reduction="sum"), "reduction must be 'mean' for DIST, got 'sum'"),
        (lambda: L.IKL(weight_temperature=0.0), "weight_temperature must be finite and greater"),
        (lambda: L.TopKKL(0), "k must be at least 1, got 0"),
        (
            lambda: L.fused_linear_kl(*(torch.ones(1, 2) for _ in range(4))),
            "2 classes or more, got 1",
        ),
        (lambda: L.TopKKL(3, tail="cut"), "tail must be 'bucket' or 'renormalise', got 'cut'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_types():
    with pytest.raises(TypeError, match="loss must be a DistillationLoss, got MSELoss"):
        L.StandardizedLogits(torch.nn.MSELoss())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"k must be an integer, got 2\.0"):
        L.TopKKL(2.0)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("value", [0.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_equal_logits_have_small_gradients(value, dtype):
    teacher = pair(4, 7)[1].to(dtype)
    for loss in (L.DIST(), L.StandardizedLogits(L.KLDivergence(temperature=2.0))):
        student = torch.full((4, 7), value, dtype=dtype, requires_grad=True)
        found = loss(student, teacher)
        found.backward()
        assert student.grad.abs().max() < 10.0, loss
        if isinstance(loss, L.DIST):
            assert found.item() == 0.0  # what rounding leaves of a constant is no correlation


@pytest.mark.parametrize("loss", [L.DIST(), L.HardLabel()])
def test_a_nan_is_not_swallowed(loss):
    student, teacher = pair(4, 7)
    broken = teacher.clone()
    broken[0, 3] = float("nan")
    assert loss(student, broken).isnan()
    if isinstance(loss, L.DIST):
        assert loss(broken, teacher).isnan()
