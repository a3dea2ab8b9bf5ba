import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from composer.core import Time, Timestamp, TimeUnit
from composer.optim import LinearScheduler

from composer_distill.schedule import (
    Window,
    check_weight,
    elapsed_fraction,
    to_time,
    weight_now,
)


def at(batch, max_duration, batches_per_epoch=10, has_length=True):
    """A State as it is while batch number ``batch`` trains: 4 samples and 40 tokens a batch."""
    epoch, in_epoch = divmod(batch, batches_per_epoch)
    return SimpleNamespace(
        timestamp=Timestamp(
            epoch=epoch,
            batch=batch,
            sample=4 * batch,
            token=40 * batch,
            batch_in_epoch=in_epoch,
            total_wct=datetime.timedelta(seconds=2 * batch),
        ),
        max_duration=None if max_duration is None else Time.from_timestring(max_duration),
        dataloader_len=Time(batches_per_epoch, TimeUnit.BATCH) if has_length else None,
    )


def active_batches(start, end, max_duration, n=20):
    window = Window(to_time(start, "start_dur"), to_time(end, "end_dur"))
    return [batch for batch in range(n) if window.contains(at(batch, max_duration))]


@pytest.mark.parametrize("max_duration", ["2ep", "20ba", "80sp", "800tok"])
@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0, 1.0, range(20)),
        (0.1, 0.5, range(2, 10)),
        (0.3, 0.7, range(6, 14)),  # 0.7 * 20 is 14.000000000000002 in floats
        ("0.25dur", "0.75dur", range(5, 15)),
        (0.101, 1.0, range(3, 20)),
        ("3ba", "1ep", range(3, 10)),
        ("1ep", 1.0, range(10, 20)),
        ("8sp", "40sp", range(2, 10)),
        ("120tok", "400tok", range(3, 10)),
        (Time(2, "ba"), Time(0.5, "dur"), range(2, 10)),
        ("6sec", "0h0m20s", range(3, 10)),
        (0.0, 0.0, []),
        (1.0, 1.0, []),
        (0, 1, range(20)),
    ],
)
def test_window_is_exact_to_the_batch(start, end, expected, max_duration):
    assert active_batches(start, end, max_duration) == list(expected)


def test_window_inside_a_single_epoch():
    assert active_batches(0.1, 0.4, "1ep", n=10) == [1, 2, 3]


def test_thirds_open_where_a_third_lies():
    window = Window(to_time(1 / 3, "start_dur"), to_time(2 / 3, "end_dur"))
    active = [b for b in range(9) if window.contains(at(b, "1ep", batches_per_epoch=9))]
    assert active == [3, 4, 5]


def test_elapsed_fraction_of_wall_clock_training():
    assert elapsed_fraction(at(5, "20sec")) == 0.5


def test_fraction_needs_the_length_of_an_epoch():
    window = Window(to_time(0.5, "start_dur"), to_time(1.0, "end_dur"))
    with pytest.raises(ValueError, match="dataloader has no length.*train_subset_num_batches"):
        window.contains(at(0, "2ep", has_length=False))
    assert Window(to_time(0.0, "s"), to_time(1.0, "e")).contains(at(0, "2ep", has_length=False))


def test_fraction_needs_max_duration():
    with pytest.raises(ValueError, match="no max_duration"):
        elapsed_fraction(at(0, None))


def test_start_after_end_is_refused_at_construction():
    with pytest.raises(ValueError, match="start_dur .'0.6dur'. is later than end_dur .'0.5dur'"):
        Window(to_time(0.6, "start_dur"), to_time(0.5, "end_dur"))


@pytest.mark.parametrize(
    ("start", "end", "max_duration"),
    [("11ba", "1ep", "2ep"), (0.6, "11ba", "20ba"), (0.6, "1ep", "2ep"), ("2ep", "15ba", "2ep")],
)
def test_start_after_end_in_unlike_units_is_refused_once_known(start, end, max_duration):
    window = Window(to_time(start, "start_dur"), to_time(end, "end_dur"))
    with pytest.raises(ValueError, match="is later than end_dur"):
        window.check(at(0, max_duration))


@pytest.mark.parametrize(
    ("start", "end"), [("9ba", "1ep"), (0.5, "1ep"), ("5tok", "1ba"), ("5ba", 1.0), ("1000ba", 1.0)]
)
def test_windows_in_unlike_units_pass(start, end):
    Window(to_time(start, "start_dur"), to_time(end, "end_dur")).check(at(0, "2ep"))


def test_float32_bounds_mean_what_they_print():
    start, end = np.float32(0.1), np.float32(0.3)
    assert active_batches(start, end, "2ep") == [2, 3, 4, 5]


@pytest.mark.parametrize(
    ("start", "end", "idle"),
    [
        ("1ba", "1ba", True),
        (1, 1.0, True),
        ("500ba", 1.0, True),
        ("2ep", 1.0, True),
        (0.5, "5ba", True),
        (0.0, 1.0, False),
        ("19ba", 1.0, False),
        ("5tok", "1ba", False),
    ],
)
def test_a_window_without_batches_is_known(start, end, idle):
    window = Window(to_time(start, "start_dur"), to_time(end, "end_dur"))
    assert window.is_idle(at(0, "2ep")) is idle


@pytest.mark.parametrize("found", [None, "much"])
def test_a_schedule_must_return_a_number(found):
    with pytest.raises(TypeError, match="kd_loss_weight is a schedule that must return a number"):
        weight_now(lambda state: found, at(3, "20ba"), "kd_loss_weight")


@pytest.mark.parametrize("value", [-0.1, 1.5, 3, "-1ba", "1.5dur", float("nan"), "half", "0.5"])
def test_bounds_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="end_dur"):
        to_time(value, "end_dur")


@pytest.mark.parametrize("value", [None, True, [0.5]])
def test_bounds_of_another_type_are_refused(value):
    with pytest.raises(TypeError, match="end_dur must be a fraction"):
        to_time(value, "end_dur")


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_weights_out_of_range_are_refused(value):
    with pytest.raises(ValueError, match="kd_loss_weight must be a finite number, zero or above"):
        check_weight(value, "kd_loss_weight")
    with pytest.raises(ValueError, match="at batch 3"):
        weight_now(lambda state: value, at(3, "20ba"), "kd_loss_weight")


@pytest.mark.parametrize("value", [None, "0.5", True])
def test_weights_of_another_type_are_refused(value):
    with pytest.raises(TypeError, match="org_loss_weight must be a number or a callable"):
        check_weight(value, "org_loss_weight")


def test_a_composer_scheduler_is_a_weight():
    scheduler = LinearScheduler(alpha_i=1.0, alpha_f=0.0, t_max="1dur")
    check_weight(scheduler, "kd_loss_weight")
    assert weight_now(scheduler, at(5, "20ba"), "kd_loss_weight") == pytest.approx(0.75)
    assert weight_now(0.3, at(5, "20ba"), "kd_loss_weight") == 0.3
