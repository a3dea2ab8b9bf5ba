from itertools import pairwise

import pytest
import torch

from composer_distill.demo.real.scores import score
from tests.demo.real.tiny import make_material


@pytest.fixture(scope="module")
def material():
    return make_material()


def test_the_nats_are_those_that_transformers_computes(material):
    windows = material.held_out
    scores, _ = score(material.teacher, windows)
    with torch.no_grad():
        expected = material.teacher(input_ids=windows, labels=windows).loss
    assert scores.nll == pytest.approx(expected.item(), rel=1e-5)


def test_agreement_counts_positions(material):
    scores, first = score(material.teacher, material.held_out)
    assert scores.agreement == 1.0
    assert first.shape == (8, 15)
    other = first.clone()
    other[0, :3] += 1
    assert score(material.teacher, material.held_out, other)[0].agreement == pytest.approx(
        1 - 3 / 120
    )


def test_calibration_is_the_gap_between_confidence_and_truth(material):
    windows = material.held_out
    scores, first = score(material.teacher, windows)
    with torch.no_grad():
        confidence = material.teacher(input_ids=windows).logits[:, :-1].softmax(-1).amax(-1)
    right = first == windows[:, 1:]
    gap, edges = 0.0, torch.linspace(0, 1, 16)
    for low, high in pairwise(edges):
        inside = (confidence >= low) & (confidence < high)
        if inside.any():
            share = inside.double().mean()
            gap += share * (right[inside].double().mean() - confidence[inside].mean()).abs()
    assert scores.ece == pytest.approx(gap.item(), abs=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_a_models_mode_is_left_as_it_was(material, mode):
    material.teacher.train(mode)
    score(material.teacher, material.held_out)
    assert material.teacher.training is mode
