import pytest
import torch

from composer_distill.terms import guard as module
from composer_distill.terms.guard import FiniteGuard

FINE, BROKEN = torch.ones(2, 3), torch.tensor([[1.0, float("nan")]])


@pytest.fixture(params=[True, False], ids=["on the host", "on a device that is not read"])
def guard(request, monkeypatch):
    monkeypatch.setattr(module, "can_be_read", lambda tensor: request.param)
    return FiniteGuard("or mend it.")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_the_first_broken_teacher_is_named(guard, bad):
    guard.note("teacher 0 (a)", FINE, FINE)
    guard.note("teacher 1 (b)", FINE, torch.tensor([[0.0, bad, 0.0]]))
    guard.note("teacher 2 (c)", BROKEN)
    with pytest.raises(ValueError, match=r"teacher 1 \(b\).*at batch 7.*or mend it\."):
        guard.check(7)
    guard.check(8)  # said once


def test_only_the_latest_microbatch_is_asked_about(guard):
    guard.start()
    guard.note("teacher 0 (a)", BROKEN)
    assert not guard.all_finite()
    guard.start()
    guard.note("teacher 0 (a)", FINE)
    finite = guard.all_finite()
    assert finite is None or finite


def test_a_batch_that_is_forgotten_stops_nothing(guard):
    guard.note("teacher 0 (a)", BROKEN)
    guard.forget()
    guard.check(0)


def test_a_sum_that_overflows_is_no_infinity(guard):
    guard.note("teacher 0 (a)", torch.full((4,), 3e38))
    guard.check(0)


def test_no_value_at_all_is_finite(guard):
    guard.note("teacher 0 (a)", torch.empty(0, 4))
    guard.check(0)


def test_a_class_that_is_ruled_out_stops_nothing_where_the_axis_is_known(guard):
    ruled_out = torch.tensor([[0.0, -float("inf"), 0.0], [1.0, 2.0, 3.0]])
    guard.note("teacher 0 (a)", ruled_out, axis=-1)
    guard.note("teacher 0 (a)", ruled_out.T, axis=0)
    guard.check(0)


@pytest.mark.parametrize(
    "row", [[0.0, float("nan"), 1.0], [0.0, float("inf"), 1.0], [-float("inf")] * 3]
)
def test_nan_infinity_and_a_position_without_a_class_stop_there_too(guard, row):
    guard.note("teacher 0 (a)", torch.tensor([[1.0, 2.0, 3.0], row]), axis=-1)
    with pytest.raises(ValueError, match=r"teacher 0 \(a\).*at batch 0"):
        guard.check(0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_none_of_finite_logits_stops_the_run(guard, bad):
    guard.note("teacher 0 (a)", FINE)
    guard.note_loss(torch.tensor(1.0), FINE)
    guard.note_loss(torch.tensor(bad), FINE)
    with pytest.raises(
        ValueError, match="kd_loss_fn returned NaN or infinity, .*at batch 7.*clamp"
    ):
        guard.check(7)
    guard.check(8)


def test_a_teacher_is_blamed_before_the_loss_of_its_answer(guard):
    guard.note("teacher 0 (a)", BROKEN)
    guard.note_loss(torch.tensor(float("nan")), FINE)
    with pytest.raises(ValueError, match=r"teacher 0 \(a\)"):
        guard.check(7)


def test_a_student_that_diverged_is_not_the_loss_s_fault(guard):
    guard.note_loss(torch.tensor(float("nan")), BROKEN)
    guard.check(7)


def test_it_is_told_once_where_nothing_stops(guard, caplog):
    for batch in (3, 4):
        guard.note_loss(torch.tensor(float("nan")), FINE)
        guard.tell(batch)
    assert caplog.text.count("kd_loss_fn returned NaN or infinity") == 1
    assert "at batch 3" in caplog.text
