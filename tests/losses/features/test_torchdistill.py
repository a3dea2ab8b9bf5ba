"""Values and gradients against torchdistill 1.1.4, where it can be imported.

``pip install --no-deps torchdistill==1.1.4`` beside torchvision makes these tests run.
"""

import pytest
import torch

from composer_distill import losses

theirs = pytest.importorskip(
    "torchdistill.losses.mid_level", reason="torchdistill is not installed"
)
PAIR = {"pair": {"student": {"io": "output", "path": ""}, "teacher": {"io": "output", "path": ""}}}
EQUAL = {"rtol": 1e-12, "atol": 1e-15}


def features(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def measured(loss, student, teacher):
    """Return value and gradient of a loss."""
    student = student.clone().requires_grad_()
    value = loss(student, teacher)
    return value.detach(), torch.autograd.grad(value, student)[0]


def of_outputs(loss):
    """Return a loss of torchdistill's as one of the student's and the teacher's tensor."""
    return lambda student, teacher: loss({"": {"output": student}}, {"": {"output": teacher}})


def assert_same(ours, other, student, teacher, **tolerance):
    for one, two in zip(
        measured(ours, student, teacher),
        measured(of_outputs(other), student, teacher),
        strict=True,
    ):
        torch.testing.assert_close(one, two, **(tolerance or EQUAL))


def test_attention_transfer():
    maps = features(6, 3, 5, 4), features(6, 7, 5, 4, seed=1)
    assert_same(losses.AttentionTransfer(), theirs.ATLoss(PAIR, mode="code"), *maps)


def test_attention_transfer_of_its_paper_mode_is_another_quantity():
    """The length of the difference, and maps summed over channels."""
    student, teacher = features(6, 3, 5, 4), features(6, 7, 5, 4, seed=1)
    squares = [
        losses.AttentionTransfer()(s[None], t[None]) * 20
        for s, t in zip(student, teacher, strict=True)
    ]
    value, _ = measured(of_outputs(theirs.ATLoss(PAIR, mode="paper")), student, teacher)
    torch.testing.assert_close(torch.stack(squares).sqrt().mean(), value, **EQUAL)


@pytest.mark.parametrize("as_the_paper", [False, True])
def test_similarity_preserving_divides_by_another_norm_there(monkeypatch, as_the_paper):
    """Its ``normalize(G, 1)`` means the power 1; the paper divides rows by their length."""
    if as_the_paper:
        monkeypatch.setattr(
            theirs, "normalize", lambda x, axis: torch.nn.functional.normalize(x, dim=axis)
        )
    loss, pair = theirs.SPKDLoss("", "", "batchmean"), (features(6, 12), features(6, 9, seed=1))
    if as_the_paper:
        assert_same(losses.SimilarityPreserving(), loss, *pair)
    else:
        value, _ = measured(losses.SimilarityPreserving(), *pair)
        assert not torch.isclose(value, measured(of_outputs(loss), *pair)[0], rtol=0.5)


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 0.0), (0.0, 1.0)])
def test_relational_kd(distance, angle):
    pair = features(6, 5), features(6, 3, seed=1)
    loss = theirs.RKDLoss("", "", distance, angle, "mean")
    assert_same(losses.RelationalKD(distance, angle), loss, *pair)


def test_probabilistic_transfer():
    """It adds 1e-7 to each vector's length, which tells in the seventh digit."""
    pair = features(6, 5), features(6, 3, seed=1)
    loss = theirs.PKTLoss("", "output", "", "output")
    assert_same(losses.ProbabilisticTransfer(), loss, *pair, rtol=1e-6, atol=1e-9)


def test_variational_information():
    student, teacher = features(6, 3, 5, 4), features(6, 3, 5, 4, seed=1)
    ours = losses.VariationalInformation(channels=3, variance=0.7).double()
    variance = ours.variance.double().detach().view(1, 3, 1, 1)

    class Predicted(theirs.VIDLoss):
        def forward(self, student_io_dict, teacher_io_dict, *args, **kwargs):
            mean = student_io_dict[""]["output"]
            predicted = {"": {"output": (mean, variance.expand_as(mean))}}
            return super().forward(predicted, teacher_io_dict)

    assert_same(ours, Predicted(PAIR), student, teacher)
