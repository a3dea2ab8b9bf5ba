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


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_what_is_on_the_meta_device_is_an_error(which):
    student, teacher = network(4, 8, 3), network(4, 8, 3)
    before = student[0].weight.clone()
    with torch.device("meta"):
        empty = network(4, 8, 3)
    pair = (empty, teacher) if which == "student" else (student, empty)
    match = rf"{which} must hold its weights, but 9 are on the meta device, such as 0\.weight"
    with pytest.raises(ValueError, match=match):
        copy_matching(*pair)
    assert torch.equal(student[0].weight, before)


def test_what_is_tied_takes_one_value():
    def tied():
        model = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
        model["head"].weight = model["words"].weight
        return model

    apart = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    student = tied()
    report = copy_matching(student, apart)
    assert (report.copied, report.unlike) == (("words.weight",), ("head.weight",))
    assert torch.equal(student["head"].weight, apart["words"].weight)
    assert copy_matching(tied(), tied()).copied == ("words.weight", "head.weight")
    assert copy_matching(apart, student).copied == ("words.weight", "head.weight")
