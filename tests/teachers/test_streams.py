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


@pytest.mark.parametrize(("name", "seed"), [("_PYTHON", random.seed), ("_NUMPY", np.random.seed)])
def test_a_stream_is_not_read_out_again_where_it_has_not_moved(name, seed, monkeypatch):
    stream, reads = getattr(streams, name), []
    get = stream._get
    seed(11)
    monkeypatch.setattr(stream, "_get", lambda: reads.append(1) or get())
    for _ in range(3):
        with untouched_streams():
            pass
    assert len(reads) == 1


@pytest.mark.parametrize(("name", "draw"), [("_PYTHON", random.random), ("_NUMPY", np.random.rand)])
def test_a_draw_of_another_thread_meanwhile_is_not_remembered_as_the_state(name, draw, monkeypatch):
    stream = getattr(streams, name)
    random.seed(12)
    np.random.seed(12)
    before, held = states(), stream._get()
    monkeypatch.setattr(stream, "_get", lambda get=stream._get: (draw(), get())[1])
    with untouched_streams():
        pass
    monkeypatch.undo()
    stream._put(held)
    with untouched_streams():
        draw()
    assert states() == before


@pytest.mark.parametrize("name", ["_TWISTER", "_RANDOM_STATE"])
def test_a_generator_that_is_not_the_usual_one_is_kept_too(name, monkeypatch):
    monkeypatch.setattr(streams, name, None)
    found = states()
    with untouched_streams():
        random.random()
        np.random.randn()
    assert states() == found
