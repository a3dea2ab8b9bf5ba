"""What a divergence of two softmaxes is, for any formula."""

import pytest
import torch

from composer_distill.losses import KLDivergence, kl_divergence
from composer_distill.losses.divergence import divergence
from composer_distill.losses.functional import TemperedLoss
from composer_distill.losses.softened import Formula, log_ratio


def weighted_kl(
    student, teacher, mask=None, *, weight=2.0, temperature=1.0, dim=-1, reduction="mean"
):
    def terms(q, p, weight):
        return weight * p.probs * log_ratio(q, p)

    formula = Formula(terms, arguments=(weight,))
    return divergence(formula, student, teacher, mask, temperature, dim, reduction)


class WeightedKL(TemperedLoss):
    function = staticmethod(weighted_kl)

    def __init__(self, weight=2.0, temperature=1.0, dim=-1, reduction="mean"):
        super().__init__(temperature, dim, reduction)
        self.weight = weight


def logits(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 7, 5, generator=generator, dtype=torch.float64).to(dtype).unbind()


@pytest.mark.parametrize("entries", [2**17, 10])
@pytest.mark.parametrize("masked", [False, True])
def test_a_formula_of_terms_alone_has_its_gradient_a_few_rows_at_a_time(
    entries, masked, monkeypatch
):
    monkeypatch.setattr("composer_distill.losses.kernel._CPU_ENTRIES", entries)
    student, teacher = logits()
    student[0, 1] = teacher[0, 1] = -torch.inf
    mask = torch.tensor([1, 1, 0, 1, 1, 1, 0]).bool() if masked else None
    found = []
    for loss in (WeightedKL(3.0, temperature=2.0), 3.0 * KLDivergence(temperature=2.0)):
        leaf = student.clone().requires_grad_()
        value = loss(leaf, teacher, mask=mask)
        value.backward()
        with torch.no_grad():
            torch.testing.assert_close(loss(leaf, teacher, mask=mask), value.detach())
        found.append((value, leaf.grad))
    torch.testing.assert_close(*found)


def test_a_loss_over_a_function_gives_it_what_it_was_made_with():
    student, teacher = logits()
    loss = WeightedKL(temperature=float, dim=0, reduction="sum")
    with pytest.raises(TypeError, match="temperature is the schedule .*float"):
        loss(student, teacher)
    loss.resolve(3)
    assert repr(loss) == "WeightedKL(weight=2.0, temperature=float, dim=0, reduction='sum')"
    expected = 2.0 * kl_divergence(student, teacher, temperature=3.0, dim=0, reduction="sum")
    torch.testing.assert_close(loss(student, teacher), expected)
