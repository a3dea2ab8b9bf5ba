import pytest
import torch

from composer_distill.telemetry.values import (
    are_probabilities,
    divergence_and_entropies,
    top1_agreement,
)


def test_agreement_counts_equal_first_classes():
    student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    teacher = torch.tensor([[9.0, 8.0, 0.0], [3.0, 1.0, 2.0], [0.1, 0.0, 0.0]])
    assert top1_agreement(student, teacher).item() == pytest.approx(2 / 3)
    assert top1_agreement(student.T, teacher.T, axis=0).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("shape", "axis"), [((30, 4), -1), ((3000, 7), -1), ((500, 7, 5), 1)])
def test_of_equal_classes_the_first_counts(shape, axis, dtype):
    generator = torch.Generator().manual_seed(0)
    pair = torch.randint(3, (2, *shape), generator=generator).to(dtype)  # full of equal ones
    pair[0].flatten()[0] = -torch.inf
    rows = [logits.movedim(axis, -1).reshape(-1, logits.shape[axis]).tolist() for logits in pair]
    same = [
        one.index(max(one)) == other.index(max(other)) for one, other in zip(*rows, strict=True)
    ]
    student = pair[0].clone().requires_grad_()
    found = top1_agreement(student, pair[1], axis)
    assert found.item() == pytest.approx(sum(same) / len(same), rel=1e-6)
    assert 0.1 < found.item() < 0.9
    assert not found.requires_grad


@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 3)])
def test_outputs_that_are_no_classification_have_none(shape):
    assert top1_agreement(torch.zeros(shape), torch.zeros(shape)) is None


def in_double(student, teacher):
    log_q, log_p = student.double().log_softmax(-1), teacher.double().log_softmax(-1)
    terms = log_p.exp() * (log_p - log_q), -log_q.exp() * log_q, -log_p.exp() * log_p
    return [term.sum(-1).mean().item() for term in terms]


# a small chunk; many rows a chunk; few classes; one row a chunk
@pytest.mark.parametrize("shape", [(7, 5), (100, 4000), (8000, 6), (3, 200_000)])
@pytest.mark.parametrize("offset", [0.0, 64.0])
def test_divergence_and_entropies_are_the_means_of_every_row(shape, offset):
    student, teacher = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).mul(3)
    teacher += offset
    before = student.clone(), teacher.clone()
    found = [value.item() for value in divergence_and_entropies(student, teacher)]
    assert found == pytest.approx(in_double(student, teacher), rel=3e-5)  # torch's softmax
    turned = [value.item() for value in divergence_and_entropies(student.T, teacher.T, axis=0)]
    assert turned == pytest.approx(found, rel=1e-6)
    torch.testing.assert_close((student, teacher), before, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(7, 5), (100, 4000)])
@pytest.mark.parametrize("spread", [1.0, 30.0])  # entropies of a sure student are small
def test_what_is_small_keeps_its_digits(shape, spread):
    student, change = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    student *= spread
    assert divergence_and_entropies(student, student)[0].item() == 0.0
    found = [value.item() for value in divergence_and_entropies(student, student + change / 16)]
    assert found == pytest.approx(in_double(student, student + change / 16), rel=1e-4)


@pytest.mark.parametrize("rows", [1, 20_000])
def test_a_class_that_neither_can_take_counts_nothing_and_one_that_the_student_cannot_all(rows):
    never, real = -torch.inf, torch.tensor([[0.0, 1.0]])
    student, teacher = torch.tensor([[0.0, 1.0, never]]), torch.tensor([[0.0, 2.0, never]])
    expected = in_double(real, teacher[:, :2])
    student, teacher = student.expand(rows, -1), teacher.expand(rows, -1)
    found = [value.item() for value in divergence_and_entropies(student, teacher)]
    assert found == pytest.approx(expected, rel=1e-5)
    found = [value.item() for value in divergence_and_entropies(student, torch.zeros(rows, 3))]
    assert found[0] == torch.inf
    assert found[1] == pytest.approx(in_double(real, real)[1], rel=1e-5)


@pytest.mark.parametrize(("shape", "axis"), [((5, 3), -1), ((2, 4, 3), -1), ((2, 3, 4, 5), 1)])
def test_a_softmax_is_told_from_logits_in_any_layout(shape, axis):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert are_probabilities(logits.softmax(axis), axis).item() == 1.0
    assert are_probabilities(logits.softmax(axis).bfloat16(), axis).item() == 1.0
    assert are_probabilities(logits, axis).item() == 0.0
    assert are_probabilities(logits.log_softmax(axis), axis).item() == 0.0
    assert are_probabilities(logits.sigmoid(), axis).item() == 0.0
