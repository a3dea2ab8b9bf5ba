"""What is particular to each loss of features: invariances, special cases, padding, memory."""

import math

import pytest
import torch

from composer_distill import losses
from composer_distill.losses.features import chunks
from composer_distill.losses.features.inputs import unit


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def rotation(width, seed=5):
    return torch.linalg.qr(features(width, width, seed=seed))[0]


SCALE_FREE = (
    losses.AttentionTransfer(),
    losses.SimilarityPreserving(),
    losses.ProbabilisticTransfer(),
    losses.CKA(),
    losses.HiddenCosine(),
    losses.RelationalKD(),
    losses.NeuronSelectivity(),
)


@pytest.mark.parametrize("loss", SCALE_FREE, ids=lambda x: type(x).__name__)
def test_a_common_factor_changes_nothing(loss):
    student, teacher = features(5, 3, 4), features(5, 3, 4, seed=1)
    torch.testing.assert_close(loss(7.0 * student, teacher), loss(student, teacher))


@pytest.mark.parametrize(
    "loss",
    [
        losses.SimilarityPreserving(),
        losses.CKA(),
        losses.RelationalKD(),
        losses.ProbabilisticTransfer(),
    ],
    ids=lambda x: type(x).__name__,
)
def test_an_orthogonal_map_changes_nothing(loss):
    student, teacher = features(5, 4), features(5, 6, seed=1)
    turned = student @ rotation(4)
    torch.testing.assert_close(loss(turned, teacher), loss(student, teacher))
    assert loss(turned, student).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss", [losses.RelationalKD(), losses.CKA()], ids=["rkd", "cka"])
def test_a_shift_changes_nothing(loss):
    student, teacher = features(5, 4), features(5, 6, seed=1)
    moved = 3.0 * student + features(4, seed=9)
    torch.testing.assert_close(loss(moved, teacher), loss(student, teacher))


def test_minilm_does_not_see_a_turn_within_heads():
    queries, keys = features(2, 5, 8), features(2, 5, 8, seed=1)
    turn = torch.block_diag(rotation(4, seed=6), rotation(4, seed=7))
    loss = losses.MiniLMRelation(relation_heads=2)
    assert loss((queries @ turn, keys), (queries, keys)).item() == pytest.approx(0, abs=1e-12)


def test_minilm_adds_up_its_relations():
    ours, theirs = features(3, 2, 5, 8).unbind(), features(3, 2, 5, 12, seed=1).unbind()
    loss = losses.MiniLMRelation(relation_heads=4)
    each = [loss(s, t) for s, t in zip(ours, theirs, strict=True)]
    torch.testing.assert_close(loss(ours, theirs), torch.stack(each).sum())


def test_minilm_needs_heads_that_divide_the_width():
    with pytest.raises(ValueError, match=r"student must be .* relation_heads=3 divides"):
        losses.MiniLMRelation(relation_heads=3)(features(2, 5, 8), features(2, 5, 9))
    with pytest.raises(ValueError, match="the same relations, got 1 and 2"):
        losses.MiniLMRelation(2)((features(2, 5, 8),), (features(2, 5, 8),) * 2)
    with pytest.raises(ValueError, match="the same positions, got 5 and 6"):
        losses.MiniLMRelation(2)(features(2, 5, 8), features(2, 6, 8))


TOKENS = {
    "HiddenMSE": (losses.HiddenMSE(), (3, 6, 4), (3, 6, 4)),
    "HiddenMSE normalize": (losses.HiddenMSE(normalize=True), (3, 6, 4), (3, 6, 4)),
    "HiddenCosine": (losses.HiddenCosine(), (3, 6, 4), (3, 6, 4)),
    "AttentionTransfer": (losses.AttentionTransfer(dim=-1), (3, 6, 4), (3, 6, 5)),
    "NeuronSelectivity": (losses.NeuronSelectivity(dim=-1), (3, 6, 4), (3, 6, 5)),
    "MiniLMRelation": (losses.MiniLMRelation(2), (3, 6, 4), (3, 6, 8)),
    "SimilarityPreserving": (losses.SimilarityPreserving(), (3, 6, 4), (3, 6, 5)),
    "RelationalKD": (losses.RelationalKD(), (3, 6, 4), (3, 6, 5)),
    "ProbabilisticTransfer": (losses.ProbabilisticTransfer(), (3, 6, 4), (3, 6, 5)),
    "CKA": (losses.CKA(), (3, 6, 4), (3, 6, 5)),
    "VariationalInformation": (losses.VariationalInformation(4, dim=-1), (3, 6, 4), (3, 6, 4)),
}


@pytest.mark.parametrize("name", TOKENS)
def test_padding_never_counts_whatever_it_holds_and_however_long_it_is(name):
    loss, *shapes = TOKENS[name]
    student, teacher = features(*shapes[0]), features(*shapes[1], seed=1)
    mask = torch.arange(6) < torch.tensor([[4], [2], [3]])
    short = loss(student[:, :4], teacher[:, :4], mask[:, :4])
    hidden = [x.masked_fill(~mask.unsqueeze(-1), math.nan) for x in (student, teacher)]
    hidden[0].requires_grad_()
    value = loss(*hidden, mask)
    torch.testing.assert_close(value, short)
    (gradient,) = torch.autograd.grad(value, hidden[0])
    assert gradient[mask].isfinite().all()
    assert gradient[mask].any()
    assert not gradient[~mask].any()


@pytest.mark.parametrize("name", ["AttentionMSE", "AttentionKL"])
def test_keys_and_queries_of_padding_never_count(name):
    loss = getattr(losses, name)()
    mask = torch.arange(6) < torch.tensor([[4], [2], [3]])
    keys = mask[:, None, None, :]
    scores = [features(3, 2, 6, 6, seed=i).masked_fill(~keys, -math.inf) for i in (0, 1)]
    if name == "AttentionKL":
        maps = [x.softmax(-1) for x in scores]
        one_by_one = [
            [loss(*(x[i : i + 1, :, :n, :n] for x in maps)), n] for i, n in enumerate((4, 2, 3))
        ]
        expected = sum(value * n for value, n in one_by_one) / 9
    else:
        maps = scores
        one_by_one = [
            [loss(*(x[i : i + 1, :, :n, :n] for x in maps)), n * n] for i, n in enumerate((4, 2, 3))
        ]
        expected = sum(value * n for value, n in one_by_one) / 29
    queries = mask[:, None, :, None]
    spoiled = maps[0].masked_fill(~queries, 7.0).requires_grad_()
    value = loss(spoiled, maps[1], mask)
    torch.testing.assert_close(value, expected)
    (gradient,) = torch.autograd.grad(value, spoiled)
    assert gradient.isfinite().all()


def test_attention_on_keys_that_the_mask_rules_out_is_taken_off():
    # A model that reads its padding: the rest is renormalised
    mask = torch.tensor([[True, True, False]])
    student = torch.tensor([0.2, 0.3, 0.5]).expand(1, 1, 3, 3)
    teacher = torch.tensor([0.4, 0.6, 0.0]).expand(1, 1, 3, 3)
    assert losses.AttentionKL()(student, teacher, mask).item() == pytest.approx(0, abs=1e-6)


def test_causal_attention_has_a_finite_divergence_and_gradient():
    causal = torch.ones(4, 4).tril().bool()
    student, teacher = (
        features(2, 3, 4, 4, seed=i).masked_fill(~causal, -math.inf).softmax(-1) for i in (0, 1)
    )
    value = losses.AttentionKL()(student.requires_grad_(), teacher)
    (gradient,) = torch.autograd.grad(value, student)
    assert value > 0
    assert gradient.isfinite().all()


def test_scores_that_either_rules_out_do_not_count():
    student, teacher = features(2, 2, 3, 3), features(2, 2, 3, 3, seed=1)
    causal = torch.ones(3, 3).tril().bool()
    hidden = [x.masked_fill(~causal, floor) for x, floor in ((student, -1e4), (teacher, -math.inf))]
    expected = (student - teacher)[..., causal].square().mean()
    torch.testing.assert_close(losses.AttentionMSE()(*hidden), expected)


def test_unlike_resolutions_are_pooled_to_the_coarser():
    student, teacher = features(2, 3, 4, 4), features(2, 5, 2, 8, seed=1)
    pooled = torch.nn.functional.avg_pool2d(student, (2, 1)), teacher.unflatten(3, (4, 2)).mean(4)
    for loss in (losses.AttentionTransfer(), losses.NeuronSelectivity()):
        torch.testing.assert_close(loss(student, teacher), loss(*pooled))
        with pytest.raises(ValueError, match="one to three axes of space"):
            loss(student, features(2, 5, 4))


def test_the_channels_may_come_last():
    student, teacher = features(2, 3, 4), features(2, 5, 4, seed=1)
    for kind in (losses.AttentionTransfer, losses.NeuronSelectivity):
        last = kind(dim=-1)(student.transpose(1, 2), teacher.transpose(1, 2))
        torch.testing.assert_close(last, kind()(student, teacher))


def test_the_power_of_attention_transfer():
    student = torch.tensor([[[1.0, 2.0]]])
    teacher = torch.tensor([[[2.0, 1.0]]])
    of_student = torch.tensor([1.0, 8.0]) / 65**0.5
    expected = (of_student - of_student.flip(0)).square().mean()
    torch.testing.assert_close(losses.AttentionTransfer(p=3)(student, teacher), expected)
    with pytest.raises(ValueError, match="p must be at least 1, got 0.5"):
        losses.AttentionTransfer(p=0.5)


@pytest.mark.parametrize("name", ["HiddenMSE", "HiddenCosine"])
def test_unlike_widths_ask_for_a_projector(name):
    loss = getattr(losses, name)()
    with pytest.raises(ValueError, match=r"\(2, 4, 3\) and \(2, 4, 5\).*projector='linear'"):
        loss(features(2, 4, 3), features(2, 4, 5))
    with pytest.raises(ValueError, match="projector='conv1x1'"):
        loss(features(2, 4, 3, 3), features(2, 5, 3, 3))
    with pytest.raises(ValueError, match="widths, not positions"):
        loss(features(2, 4, 3), features(2, 5, 3))


def test_relational_kd_of_one_kind_alone():
    student, teacher = features(4, 3), features(4, 5, seed=1)
    both = losses.RelationalKD(distance=2.0, angle=3.0)(student, teacher)
    apart = (
        losses.RelationalKD(2.0, 0.0)(student, teacher),
        losses.RelationalKD(0.0, 3.0)(student, teacher),
    )
    torch.testing.assert_close(both, apart[0] + apart[1])
    with pytest.raises(ValueError, match="both 0"):
        losses.RelationalKD(0.0, 0.0)


def test_equal_samples_leave_a_finite_gradient():
    student, teacher = features(4, 3), features(4, 5, seed=1)
    student[1] = student[0]
    (gradient,) = torch.autograd.grad(
        losses.RelationalKD()(student.requires_grad_(), teacher), student
    )
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e4


def test_one_sample_alone_relates_to_nothing():
    student, teacher = features(1, 3), features(1, 5, seed=1)
    for loss in (losses.CKA(), losses.RelationalKD(), losses.SimilarityPreserving()):
        assert loss(student, teacher).item() == pytest.approx(0.0, abs=1e-12)


def test_batch_losses_say_that_they_relate_samples():
    relating = {
        name for name in losses.__all__ if getattr(getattr(losses, name), "relates_samples", False)
    }
    assert relating == {"CKA", "RelationalKD", "SimilarityPreserving", "ProbabilisticTransfer"}


def test_angles_are_made_a_few_vertices_at_a_time(monkeypatch):
    sizes = []
    original = torch.Tensor.__matmul__

    def spy(a, b):
        sizes.append(a.shape[0] if a.ndim == 3 else 0)
        return original(a, b)

    monkeypatch.setattr(chunks, "ENTRIES", 2 * 6 * (6 + 3))
    monkeypatch.setattr(torch.Tensor, "__matmul__", spy)
    losses.RelationalKD()(features(6, 3), features(6, 3, seed=1))
    assert max(sizes) == 2


def test_variance_is_trained_and_starts_where_it_was_set():
    loss = losses.VariationalInformation(variance=0.5)
    assert isinstance(loss.scale, torch.nn.UninitializedParameter)
    student, teacher = features(4, 3, 2), features(4, 3, 2, seed=1)
    loss(student, teacher).backward()
    torch.testing.assert_close(loss.variance, torch.full((3,), 0.5))
    assert loss.scale.grad is not None
    assert loss.scale.grad.abs().min() > 0
    # At the variance of the differences the likelihood is greatest
    best = (student - teacher).square().mean((0, 2)) - 1e-5
    loss.scale.data = best + (-torch.expm1(-best)).log()
    loss.scale.grad = None
    loss(student, teacher).backward()
    assert loss.scale.grad.abs().max() < 1e-6


def test_variances_must_fit_the_channels():
    loss = losses.VariationalInformation(channels=3)
    with pytest.raises(ValueError, match=r"teacher's 4 channels, got the shape \(3,\)"):
        loss(features(2, 4), features(2, 4))
    with pytest.raises(ValueError, match="variance must be finite and greater than"):
        losses.VariationalInformation(variance=0.0)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_vector_of_any_length_gets_length_one(size):
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0]]) * size
    torch.testing.assert_close(unit(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
