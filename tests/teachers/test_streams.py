"""Random streams stand where they stood, whatever drew from them before and meanwhile."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from composer_distill.teachers import streams
from composer_distill.teachers.streams import untouched_streams

DRAWS: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "python, one number": random.random,
    "python, one bit": lambda: random.getrandbits(1),
    "python, one of two Gaussians": lambda: random.gauss(0.0, 1.0),
    "python, two Gaussians": lambda: [random.gauss(0.0, 1.0) for _ in range(2)],
    "python, as many words as it holds": lambda: [random.getrandbits(32) for _ in range(624)],
    "python, seed": lambda: random.seed(3),
    "python, an earlier state": lambda: random.setstate(random.Random(5).getstate()),
    "numpy, one number": np.random.rand,
    "numpy, one of two Gaussians": np.random.randn,
    "numpy, two Gaussians": lambda: np.random.randn(2),
    "numpy, as many words as it holds": lambda: np.random.rand(312),
    "numpy, seed": lambda: np.random.seed(3),
    "numpy, an earlier state": lambda: np.random.set_state(np.random.RandomState(5).get_state()),
    "torch, one number": lambda: torch.rand(1),
    "torch, seed": lambda: torch.manual_seed(3),
}


def states() -> tuple[object, ...]:
    return (
        random.getstate(),
        repr(np.random.get_state(legacy=False)),
        torch.get_rng_state().tolist(),
    )


@pytest.mark.parametrize("before", DRAWS)
@pytest.mark.parametrize("inside", DRAWS)
def test_no_draw_inside_is_seen_outside(before, inside):
    with np.printoptions(threshold=1000):
        DRAWS[before]()
        for _ in range(3):
            found = states()
            with untouched_streams():
                DRAWS[inside]()
            assert states() == found
            DRAWS[before]()


def test_the_numbers_drawn_inside_are_those_that_come_next():
    with untouched_streams():
        inside = random.random(), np.random.rand(), torch.rand(1).item()
    assert inside == (random.random(), np.random.rand(), torch.rand(1).item())


def test_an_error_inside_does_not_move_them():
    found = states()
    with pytest.raises(ZeroDivisionError), untouched_streams():
        [*(draw() for draw in DRAWS.values()), 1 / 0]
    assert states() == found


def test_another_generator_of_numpy_is_kept_too():
    usual = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(1))
        found = np.random.get_state(legacy=False)
        for _ in range(2):
            with untouched_streams():
                np.random.randn()
            assert np.random.get_state(legacy=False) == found
    finally:
        np.random.set_bit_generator(usual)


def test_a_state_with_the_same_memory_and_a_gaussian_held_is_kept():
    np.random.seed(1)
    np.random.randn()
    held = np.random.get_state()
    np.random.randn()
    with untouched_streams():
        pass
    np.random.set_state(held)
    with untouched_streams():
        np.random.randn()
    assert np.random.get_state()[3:] == held[3:]


def test_pythons_stream_is_not_read_out_again_where_it_has_not_moved(monkeypatch):
    reads = []
    getstate = random.getstate
    random.seed(11)
    monkeypatch.setattr(random, "getstate", lambda: reads.append(1) or getstate())
    for _ in range(3):
        with untouched_streams():
            pass
    assert len(reads) == 1


def test_a_draw_of_another_thread_meanwhile_is_not_remembered_as_the_state(monkeypatch):
    getstate = random.getstate
    random.seed(12)
    before = getstate()
    monkeypatch.setattr(random, "getstate", lambda: (random.random(), getstate())[1])
    with untouched_streams():
        pass
    monkeypatch.undo()
    random.setstate(before)
    with untouched_streams():
        random.random()
    assert random.getstate() == before


def test_a_replaced_function_of_python_does_no_harm(monkeypatch):
    monkeypatch.setattr(streams, "_TWISTER", None)
    found = states()
    with untouched_streams():
        random.random()
    assert states() == found
