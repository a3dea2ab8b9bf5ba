import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss

from composer_distill.demo.data import load_split
from composer_distill.demo.models import build_student
from composer_distill.demo.scores import answer, score


def expected_calibration_error(probabilities, labels, bins=15):
    confidence = probabilities.max(-1)
    right = probabilities.argmax(-1) == labels
    which = np.ceil(confidence * bins).astype(int)
    return sum(
        (which == b).mean() * abs(right[which == b].mean() - confidence[which == b].mean())
        for b in np.unique(which)
    )


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
def test_scores_agree_with_scikit_learn_and_numpy(sharpness):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (500,), generator=generator)
    noise = torch.randn(500, 10, generator=generator)
    logits = sharpness * (noise + 2 * torch.nn.functional.one_hot(labels, 10))
    teacher = torch.randn(500, 10, generator=generator)
    scores = score(logits, labels, teacher)

    probabilities = logits.double().softmax(-1).numpy()
    truth, answers = labels.numpy(), probabilities.argmax(-1)
    assert scores.accuracy == pytest.approx(accuracy_score(truth, answers))
    assert scores.nll == pytest.approx(log_loss(truth, probabilities), rel=1e-5)
    assert scores.ece == pytest.approx(expected_calibration_error(probabilities, truth), rel=1e-4)
    agreed = accuracy_score(teacher.argmax(-1).numpy(), answers)
    assert scores.agreement == pytest.approx(agreed)


def test_answer_is_in_eval_mode_and_leaves_the_mode_alone():
    _, test = load_split(1000)
    student = build_student(0)
    student.module.append(torch.nn.Dropout(0.5))
    student.train()
    assert torch.equal(answer(student, test), answer(student, test))
    assert student.training
