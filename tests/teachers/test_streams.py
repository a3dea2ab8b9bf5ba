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


@pytest.mark.parametrize(("stream", "seed"), [("_python", 11), ("_numpy", 12)])
def test_a_stream_that_has_not_moved_is_not_read_out_again(stream, seed, monkeypatch):
    reads = []
    one = getattr(streams, stream)
    np.random.seed(seed)
    random.seed(seed)
    monkeypatch.setattr(one, "_get", lambda get=one._get: reads.append(1) or get())
    for _ in range(3):
        with untouched_streams():
            pass
    assert len(reads) == 1
