import pytest
import torch

from composer_distill.telemetry import (
    are_probabilities,
    divergence_and_entropies,
    top1_agreement,
)


def test_agreement_counts_equal_first_classes():
    student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    teacher = torch.tensor([[9.0, 8.0, 0.0], [3.0, 1.0, 2.0], [0.1, 0.0, 0.0]])
    assert top1_agreement(student, teacher).item() == pytest.approx(2 / 3)
    assert top1_agreement(student.T, teacher.T, axis=0).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 3)])
def test_outputs_that_are_no_classification_have_none(shape):
    assert top1_agreement(torch.zeros(shape), torch.zeros(shape)) is None


def in_double(student, teacher):
    log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q), -log_q.exp() * log_q, -log_p.exp() * log_p
    return [term.sum(-1).mean().item() for term in terms]


@pytest.mark.parametrize("shape", [(7, 5), (3, 200_000)])  # many rows a chunk; one
def test_divergence_and_entropies_are_the_means_of_every_row(shape):
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).mul(3)
    before = student.clone(), teacher.clone()
    found = [value.item() for value in divergence_and_entropies(student, teacher)]
    assert found == pytest.approx(in_double(student, teacher), rel=1e-4)
    turned = [value.item() for value in divergence_and_entropies(student.T, teacher.T, axis=0)]
    assert turned == pytest.approx(found, rel=1e-4)
    torch.testing.assert_close((student, teacher), before, rtol=0, atol=0)


def test_a_class_that_neither_can_take_counts_nothing_and_one_that_the_student_cannot_all():
    never, real = -torch.inf, torch.tensor([[0.0, 1.0]])
    student, teacher = torch.tensor([[0.0, 1.0, never]]), torch.tensor([[0.0, 2.0, never]])
    found = [value.item() for value in divergence_and_entropies(student, teacher)]
    assert found == pytest.approx(in_double(real, teacher[:, :2]), rel=1e-5)
    found = [value.item() for value in divergence_and_entropies(student, torch.zeros(1, 3))]
    assert found[0] == torch.inf
    assert found[1] == pytest.approx(in_double(real, real)[1], rel=1e-6)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), -1), ((2, 4, 3), -1), ((2, 3, 4, 5), 1)])
def test_a_softmax_is_told_from_logits_in_any_layout(shape, axis):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert are_probabilities(logits.softmax(axis), axis).item() == 1.0
    assert are_probabilities(logits.softmax(axis).bfloat16(), axis).item() == 1.0
    assert are_probabilities(logits, axis).item() == 0.0
    assert are_probabilities(logits.log_softmax(axis), axis).item() == 0.0
    assert are_probabilities(logits.sigmoid(), axis).item() == 0.0
