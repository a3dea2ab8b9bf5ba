import pytest
import torch

from composer_distill.training.meters import BatchMeter


def add(meter, value, share):
    meter.add({"kd": torch.tensor(value)}, torch.tensor(share))


def taken(meter):
    names, values = meter.take()
    return dict(zip(names, values.tolist(), strict=True))


def test_weights_microbatches_by_their_share():
    meter = BatchMeter()
    meter.start_pass()
    for value, share in [(1.0, 0.4), (2.0, 0.4), (6.0, 0.2)]:
        add(meter, value, share)
    meter.complete_pass()
    assert taken(meter)["kd"] == pytest.approx(2.4)
    assert taken(meter) == {}


def test_a_pass_that_did_not_complete_is_forgotten():
    meter = BatchMeter()
    meter.start_pass()
    add(meter, 100.0, 0.5)
    meter.start_pass()
    add(meter, 3.0, 1.0)
    meter.complete_pass()
    assert taken(meter)["kd"] == 3.0


def test_the_first_complete_pass_counts():
    meter = BatchMeter()
    for value in (3.0, 5.0):
        meter.start_pass()
        add(meter, value, 1.0)
        meter.complete_pass()
    assert taken(meter)["kd"] == 3.0


def test_flags_and_half_precision_are_summed_in_float32():
    meter = BatchMeter()
    meter.add({"skipped": torch.tensor(True)}, torch.tensor(0.25, dtype=torch.float16))
    meter.complete_pass()
    names, values = meter.take()
    assert (names, values.dtype, values.tolist()) == (("skipped",), torch.float32, [0.25])


def test_microbatches_may_tell_different_things():
    meter = BatchMeter()
    meter.add({"kd": torch.tensor(1.0), "chance": torch.tensor(8.0)}, torch.tensor(0.25))
    meter.add({"kd": torch.tensor(3.0)}, torch.tensor(0.75))
    meter.complete_pass()
    assert taken(meter) == {"kd": 2.5, "chance": 2.0}
