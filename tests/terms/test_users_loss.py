"""Functions of the user's for a loss: what they spoil, and what they are told."""

import logging
import sys

import pytest
import torch

from composer_distill.terms.users_loss import GradientShield, UsersLoss

STUDENT = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64, requires_grad=True)


def answer(dtype=torch.float64):
    return torch.tensor([[1.0, 2.0, 3.0]], dtype=dtype)


def test_a_function_that_only_reads_gets_the_logits_themselves_from_the_second_time_on():
    seen = []
    loss = UsersLoss(lambda student, teacher: seen.append(teacher) or (student - teacher).square())
    one, two = answer(), answer()
    assert loss(STUDENT, one) == (STUDENT - one).square().mean()
    loss(STUDENT, two)
    assert seen[0] is not one
    assert seen[1] is two


@pytest.mark.parametrize("from_call", [0, 1])
def test_a_function_that_writes_is_told_once_and_gets_copies(from_call, caplog):
    calls = []

    def writing(student, teacher):
        calls.append(1)
        target = teacher.mul_(2) if len(calls) > from_call else teacher * 2
        return (student - target).square()

    loss = UsersLoss(writing)
    for call in range(4):
        logits = answer()
        assert loss(STUDENT, logits) == (STUDENT - 2 * answer()).square().mean()
        if call != from_call or call == 0:  # who begins late is seen the first time it happens
            assert torch.equal(logits, answer())
    assert caplog.text.count("kd_loss_fn writes into the logits") == 1
    assert caplog.records[0].levelno == logging.WARNING


def test_a_cast_is_a_copy_already(caplog):
    logits = answer(torch.bfloat16)
    UsersLoss(lambda student, teacher: (student - teacher.zero_()).sum())(STUDENT, logits)
    assert torch.equal(logits, answer(torch.bfloat16))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="errors take no notes")
def test_an_error_names_the_argument():
    def my_loss(student, teacher):
        return student @ teacher

    with pytest.raises(RuntimeError, match="mat1 and mat2") as caught:
        UsersLoss(my_loss)(STUDENT, answer())
    (note,) = caught.value.__notes__
    assert "kd_loss_fn (" in note
    assert "my_loss) on logits of shape (1, 3)" in note


def test_what_is_not_finite_counts_nothing_and_trains_nothing():
    student = torch.tensor([0.0, 4.0], requires_grad=True)
    (student.log().sum() * 0).backward()
    assert student.grad.isnan().any()  # as it would be without
    student.grad = None
    shield = GradientShield(student)
    loss = shield.close(shield.logits.log().sum() * 0)
    (loss + student.sum()).backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.ones(2))  # the student's own loss trains on


def test_what_is_finite_is_let_through_bit_for_bit():
    student, plain = (torch.tensor([0.3, 4.0], requires_grad=True) for _ in range(2))
    shield = GradientShield(student)
    shield.close(shield.logits.log().sum()).backward()
    plain.log().sum().backward()
    assert torch.equal(student.grad, plain.grad)
