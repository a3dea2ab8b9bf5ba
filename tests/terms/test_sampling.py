import random
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch

from composer_distill.terms.sampling import sample_teachers


def test_all_teachers_answer_with_normalised_weights():
    assert sample_teachers([1, 2, 1], None, 0, 5) == [(0, 0.25), (1, 0.5), (2, 0.25)]
    assert sample_teachers([1, 2, 1], 3, 0, 5) == [(0, 0.25), (1, 0.5), (2, 0.25)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_draws_distinct_teachers_whose_shares_sum_to_one(n):
    for batch in range(200):
        drawn = sample_teachers([1, 1, 1, 1, 1], n, 3, batch)
        assert len({index for index, _ in drawn}) == n
        assert [index for index, _ in drawn] == sorted(index for index, _ in drawn)
        assert sum(share for _, share in drawn) == pytest.approx(1, abs=1e-12)


def test_is_a_pure_function_of_seed_and_batch():
    draws = [sample_teachers([1] * 8, 2, 0, batch) for batch in range(50)]
    assert draws == [sample_teachers([1] * 8, 2, 0, batch) for batch in range(50)]
    assert draws != [sample_teachers([1] * 8, 2, 1, batch) for batch in range(50)]
    assert len({tuple(draw) for draw in draws}) > 10


def test_the_stream_is_the_same_on_every_machine_and_version():
    # A resumed run may have moved: these are facts of Mersenne Twister and SHA-512, not of here.
    first = [sample_teachers([1] * 4, 1, 0, batch)[0][0] for batch in range(12)]
    expected = []
    for batch in range(12):
        stream = random.Random(f"0:{batch}")
        offset, keys = stream.random(), [stream.random() for _ in range(4)]
        order = sorted(range(4), key=keys.__getitem__)
        expected.append(order[int(offset * 4)])
    assert first == expected


def test_touches_no_global_random_stream():
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    sample_teachers([1, 2, 3], 1, 0, 0)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert states == after


def test_equal_weights_draw_every_subset_alike():
    counts = Counter(
        tuple(index for index, _ in sample_teachers([1] * 4, 2, 0, batch)) for batch in range(6000)
    )
    assert set(counts) == set(combinations(range(4), 2))
    for count in counts.values():
        assert count == pytest.approx(1000, abs=5 * np.sqrt(6000 * 1 / 6 * 5 / 6))


@pytest.mark.parametrize("weights", [[1, 1, 1], [1, 2, 3, 4], [10, 1, 1], [100, 100, 1, 1]])
@pytest.mark.parametrize("n", [1, 2])
def test_shares_average_to_the_weights(weights, n):
    mean = np.zeros(len(weights))
    batches = 8000
    for batch in range(batches):
        for index, share in sample_teachers(weights, n, 7, batch):
            mean[index] += share / batches
    np.testing.assert_allclose(mean, np.array(weights) / sum(weights), atol=0.03)


def test_a_very_heavy_teacher_always_answers():
    for batch in range(100):
        drawn = dict(sample_teachers([10, 1, 1], 2, 0, batch))
        assert drawn[0] == pytest.approx(10 / 12)
        assert sum(drawn.values()) == pytest.approx(1)
