"""Work that is begun before it is asked for."""

import copy
import threading

import pytest
import torch

from composer_distill.teachers.ahead import Ahead


@pytest.fixture
def threads():
    return []


@pytest.fixture
def ahead(threads):
    def work(batch):
        threads.append(threading.current_thread().name)
        return float(batch["x"].sum())

    return Ahead(work)


def batch():
    return {"x": torch.ones(3), "y": [torch.zeros(2), "a word"]}


def test_what_is_begun_is_done_once_in_a_thread(ahead, threads):
    one = batch()
    ahead.begin(one)
    ahead.begin(one)
    assert ahead.take({**one}) == 3.0  # a shallow copy, as of the view
    assert len(threads) == 1
    assert threads[0].startswith("answers")


def test_a_batch_that_changed_in_place_is_read_anew(ahead, threads):
    one = batch()
    ahead.begin(one)
    one["x"].mul_(2)
    assert ahead.take(one) == 6.0
    assert threads[1] == threading.current_thread().name


@pytest.mark.parametrize(
    "change", [{"x": torch.full((3,), 5.0)}, {"y": [torch.zeros(2)]}, {"z": 1}], ids=str
)
def test_a_batch_that_holds_something_else_is_read_anew(ahead, threads, change):
    one = batch()
    ahead.begin(one)
    other = {**one, **change}
    assert ahead.take(other) == float(other["x"].sum())
    assert len(threads) == 2


def test_nothing_is_kept(ahead, threads):
    one = batch()
    ahead.begin(one)
    ahead.forget()
    assert ahead.take(one) == 3.0
    assert len(threads) == 2
    assert ahead._begun is None
    copy.deepcopy(ahead)


def test_an_error_is_raised_where_the_result_is_asked_for(ahead):
    nothing = {"y": 1}
    ahead.begin(nothing)
    with pytest.raises(KeyError, match="x"):
        ahead.take(nothing)
    ahead.begin(nothing)
    ahead.forget()
