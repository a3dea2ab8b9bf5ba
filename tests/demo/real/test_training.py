import time

import pytest
import torch

from composer_distill.demo.real import training
from composer_distill.demo.real.material import draw
from composer_distill.demo.real.scores import score
from composer_distill.demo.real.students import cut, random_like
from composer_distill.demo.real.training import Curve, answers_to, distilled_by, train
from tests.demo.real.tiny import make_material


@pytest.fixture(scope="module")
def material():
    return make_material()


def run(material, student, at=(2, 4), steps=4, algorithm=None, rate=1e-3):
    _, first = score(material.teacher, material.held_out)
    windows = draw(material.train, 4 * steps, 1)
    curve = Curve(material.held_out, first, at)
    return train(
        student,
        windows,
        curve,
        batch_size=4,
        learning_rate=rate,
        seed=1,
        algorithm=algorithm,
    )


def test_points_are_taken_where_asked_and_the_last_is_the_students(material):
    student = cut(material.teacher, 2)
    points = run(material, student)
    assert [point.step for point in points] == [2, 4]
    _, first = score(material.teacher, material.held_out)
    assert points[-1].scores == score(student, material.held_out, first)[0]
    assert 0 < points[0].cpu_seconds < points[1].cpu_seconds


def test_the_clock_stands_still_while_a_student_is_scored(material, monkeypatch):
    def slow(*arguments):
        until = time.process_time() + 2.0
        while time.process_time() < until:
            pass
        return score(*arguments)

    monkeypatch.setattr(training, "score", slow)
    assert run(material, cut(material.teacher, 2))[-1].cpu_seconds < 2.0


def test_a_student_comes_closer_to_a_teacher_that_answered_once(material, tmp_path):
    windows = draw(material.train, 400, 1)
    cached = answers_to(material.teacher, windows, tmp_path / "answers", samples=50)
    _, first = score(material.teacher, material.held_out)
    student = cut(material.teacher, 2)
    untrained, _ = score(student, material.held_out, first)
    points = run(material, student, (100,), 100, distilled_by(cached), rate=1e-2)
    assert points[-1].scores.agreement > untrained.agreement + 0.05


def test_text_alone_and_a_live_teacher_train_the_same_first_weights(material):
    kept = {name: value.clone() for name, value in material.teacher.state_dict().items()}
    alone = run(material, cut(material.teacher, 2))
    live = run(material, cut(material.teacher, 2), algorithm=distilled_by(material.teacher))
    assert alone[-1].scores != live[-1].scores
    assert all(torch.equal(kept[n], v) for n, v in material.teacher.state_dict().items())


def test_random_students_differ_by_seed_and_have_the_cut_ones_shape(material):
    student = cut(material.teacher, 2)
    one, same, other = (random_like(student, seed) for seed in (1, 1, 2))
    shapes = {name: value.shape for name, value in student.state_dict().items()}
    assert {name: value.shape for name, value in one.state_dict().items()} == shapes
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one.state_dict()[name], same.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
