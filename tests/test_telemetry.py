import pytest
import torch

from composer_distill.telemetry import top1_agreement


def test_agreement_counts_equal_first_classes():
    student = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    teacher = torch.tensor([[9.0, 8.0, 0.0], [3.0, 1.0, 2.0], [0.1, 0.0, 0.0]])
    assert top1_agreement(student, teacher).item() == pytest.approx(2 / 3)
    assert top1_agreement(student.T, teacher.T, axis=0).item() == pytest.approx(2 / 3)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (0, 3)])
def test_outputs_that_are_no_classification_have_none(shape):
    assert top1_agreement(torch.zeros(shape), torch.zeros(shape)) is None
