import math

import pytest
import torch
from torch.nn import functional as F

from composer_distill.terms.combining import mean_logits, mean_probabilities

SHARES = (0.5, 0.3, 0.2)


def teachers(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        3 * torch.randn(4, 5, generator=generator, dtype=torch.float64).to(dtype) for _ in SHARES
    ]


def forward_kl(student, teacher, temperature):
    log_q = (student / temperature).log_softmax(-1)
    log_p = (teacher / temperature).log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def gradient(function, student):
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(function(student), student)
    return result


def test_mean_logits_is_the_weighted_mean():
    stacked = torch.stack(teachers())
    expected = torch.einsum("t,tnc->nc", torch.tensor(SHARES, dtype=torch.float64), stacked)
    torch.testing.assert_close(mean_logits(zip(SHARES, teachers(), strict=True)), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mean_probabilities_is_the_mixture_at_the_temperature(temperature):
    expected = sum(
        w * (z / temperature).softmax(-1) for w, z in zip(SHARES, teachers(), strict=True)
    )
    logits = mean_probabilities(zip(SHARES, teachers(), strict=True), temperature)
    torch.testing.assert_close((logits / temperature).softmax(-1), expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_probability_mixture_has_the_gradient_of_the_mean_of_forward_kls(temperature):
    student = torch.randn(4, 5, dtype=torch.float64)
    mixture = mean_probabilities(zip(SHARES, teachers(), strict=True), temperature)
    of_mean = gradient(lambda s: forward_kl(s, mixture, temperature), student)
    mean_of = gradient(
        lambda s: sum(
            w * forward_kl(s, z, temperature) for w, z in zip(SHARES, teachers(), strict=True)
        ),
        student,
    )
    torch.testing.assert_close(of_mean, mean_of)
    logit_mean = mean_logits(zip(SHARES, teachers(), strict=True))
    of_logits = gradient(lambda s: forward_kl(s, logit_mean, temperature), student)
    assert (of_logits - mean_of).abs().max() > 1e-3


def test_logit_mean_has_the_gradient_of_the_mean_of_reverse_kls():
    student = torch.randn(4, 5, dtype=torch.float64)
    logit_mean = mean_logits(zip(SHARES, teachers(), strict=True))
    of_mean = gradient(lambda s: forward_kl(logit_mean, s, 2.0), student)
    mean_of = gradient(
        lambda s: sum(w * forward_kl(z, s, 2.0) for w, z in zip(SHARES, teachers(), strict=True)),
        student,
    )
    torch.testing.assert_close(of_mean, mean_of)


def test_dim_is_the_axis_of_the_mixture():
    moved = [z.T for z in teachers()]
    torch.testing.assert_close(
        mean_probabilities(zip(SHARES, moved, strict=True), 2.0, dim=0).T,
        mean_probabilities(zip(SHARES, teachers(), strict=True), 2.0),
    )


@pytest.mark.parametrize("combine", [mean_logits, lambda answers: mean_probabilities(answers, 2.0)])
def test_one_teacher_passes_through_untouched(combine):
    only = teachers()[0]
    assert combine([(1.0, only)]) is only


@pytest.mark.parametrize("combine", [mean_logits, lambda answers: mean_probabilities(answers, 2.0)])
def test_answers_are_not_changed_and_half_precision_is_summed_in_float32(combine):
    answers = teachers(torch.bfloat16)
    before = [z.clone() for z in answers]
    result = combine(zip(SHARES, answers, strict=True))
    assert result.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(answers, before, strict=True))


def test_extreme_logits_keep_the_mixture_finite():
    answers = [(0.5, torch.tensor([1e4, -1e4])), (0.5, torch.tensor([-1e4, 1e4]))]
    mixture = mean_probabilities(answers, 1.0)
    torch.testing.assert_close(mixture, torch.full((2,), math.log(0.5)))


def test_answers_are_read_one_at_a_time():
    alive = []

    def answers():
        for share, logits in zip(SHARES, teachers(), strict=True):
            alive.append(share)
            assert len(alive) <= 3
            yield share, logits

    mean_logits(answers())
    assert alive == list(SHARES)


@pytest.mark.parametrize("combine", [mean_logits, lambda answers: mean_probabilities(answers, 2.0)])
def test_no_answers_are_refused(combine):
    with pytest.raises(ValueError, match="at least one teacher"):
        combine([])
