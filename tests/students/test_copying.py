from itertools import pairwise

import pytest
import torch
from torch import nn

from composer_distill import copy_matching


def network(*widths):
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(layers[0], nn.BatchNorm1d(widths[1]), *layers[1:])


def test_what_fits_is_copied_and_the_rest_reported():
    teacher, student = network(4, 8, 8, 3), network(4, 8, 3)
    teacher[1](torch.randn(5, 8))  # moves the statistics, which are buffers
    last = student[2].weight.clone()
    report = copy_matching(student, teacher)

    assert report.copied[:2] == ("0.weight", "0.bias")
    assert "1.running_mean" in report.copied
    assert report.unlike == ("2.weight", "2.bias")
    assert report.missing == ()
    assert report.unused == ("3.weight", "3.bias")
    assert torch.equal(student[1].running_mean, teacher[1].running_mean)
    assert torch.equal(student[0].weight, teacher[0].weight)
    assert torch.equal(student[2].weight, last)

    before = teacher[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1.0)
    assert torch.equal(teacher[0].weight, before)
    assert student[0].weight.requires_grad


def test_types_of_the_student_stay():
    student = nn.Linear(2, 2, dtype=torch.float64)
    copy_matching(student, nn.Linear(2, 2).to(torch.bfloat16))
    assert student.weight.dtype is torch.float64


def test_nothing_that_fits_is_an_error():
    with pytest.raises(ValueError, match=r"student has weight, bias, the teacher 0\.weight, 0\.bi"):
        copy_matching(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="teacher must be"):
        copy_matching(nn.Linear(2, 2), {})
