import pytest
import torch

from composer_distill.demo.data import load_split
from composer_distill.demo.models import build_student, build_teacher, count_parameters, jitter


@pytest.mark.parametrize("build", [build_teacher, build_student])
def test_weights_depend_on_the_seed_alone(build):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = torch.cat([weight.flatten() for weight in build(1).parameters()])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = torch.cat([weight.flatten() for weight in build(1).parameters()])
    other = torch.cat([weight.flatten() for weight in build(2).parameters()])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_student_is_the_perceptron_that_the_demo_names():
    student = build_student(0)
    assert count_parameters(student) == 64 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10


def test_jitter_moves_each_image_a_little_in_its_own_way():
    train, _ = load_split(1000)
    images = train.images[:1].expand(32, -1, -1, -1)
    torch.manual_seed(0)
    moved, labels = jitter((images, train.labels[:32]))
    assert moved.shape == images.shape
    assert torch.equal(labels, train.labels[:32])
    assert len(moved.flatten(1).unique(dim=0)) == 32
    assert 0 < (moved - images).abs().mean() < 0.3
    assert moved.min() >= 0
    assert moved.max() <= 1
