"""A batch comes back from a teacher as it went."""

import pytest
import torch

from composer_distill.teachers.lending import Lending


def batch():
    return {"x": torch.ones(3), "more": (torch.zeros(2), ["text"])}


def lend(lending, given, write=False):
    with lending.lend(given) as lent:
        same = lent["x"] is given["x"] and lent["more"][0] is given["more"][0]
        if write:
            lent["x"][:1].sub_(0.5)  # a view counts with its base
            lent["more"][0].relu_()
    return same


def untouched(given):
    return torch.equal(given["x"], torch.ones(3)) and given["x"]._version == 0


def test_a_teacher_that_writes_gets_copies_and_is_told_of_once(caplog):
    lending = Lending("teacher 1 (Net)")
    for _ in range(3):
        given = batch()
        assert not lend(lending, given, write=True)
        assert untouched(given)
    assert caplog.text.count("teacher 1 (Net) changes its input in place") == 1


def test_a_teacher_that_only_reads_gets_the_tensors_themselves_after_its_first_batch(caplog):
    lending = Lending("teacher 0 (Net)")
    assert [lend(lending, batch()) for _ in range(3)] == [False, True, True]
    assert caplog.text == ""


def test_a_teacher_that_begins_to_write_later_is_refused():
    lending = Lending("teacher 0 (Net)")
    lend(lending, batch())
    with pytest.raises(ValueError, match=r"teacher 0 \(Net\): it changed its input .*input_fn"):
        lend(lending, batch(), write=True)


def test_a_batch_that_failed_tells_nothing():
    lending = Lending("teacher 0 (Net)")
    with pytest.raises(MemoryError), lending.lend(batch()):
        raise MemoryError
    assert not lend(lending, batch())


def test_inference_tensors_are_lent_too():
    with torch.inference_mode():
        given = batch()
    lending = Lending("teacher 0 (Net)")
    assert [lend(lending, given) for _ in range(2)] == [False, True]
