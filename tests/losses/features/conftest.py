"""The roster of feature losses: one row each, with a float64 reference in NumPy and SciPy."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr

from composer_distill import losses as L


@dataclass(frozen=True)
class Row:
    """What the contract needs to know of one loss: how it is made, called and computed."""

    make: Callable[[], Any]
    reference: Callable[[np.ndarray, np.ndarray], float]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    function: str
    mask: tuple[int, ...] | None = (4,)  # the shape of a mask
    zero_at_identity: bool = True
    symmetric: bool = False
    probabilities: bool = False

    def pair(self, dtype=torch.float64):
        return tuple(
            features(*shape, seed=i, probabilities=self.probabilities).to(dtype)
            for i, shape in enumerate(self.shapes)
        )


def features(*shape, seed=0, probabilities=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.softmax(-1) if probabilities else x


def length_one(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def activation_map(x):
    return length_one((x**2).mean(1).reshape(len(x), -1))


def relation(x, heads):
    """(B, L, D) to log-probabilities (B, heads, L, L), one head at a time."""
    width = x.shape[-1] // heads
    pieces = [x[..., i * width : (i + 1) * width] for i in range(heads)]
    return np.stack([log_softmax(p @ p.swapaxes(1, 2) / width**0.5, -1) for p in pieces], 1)


def divergence(p, q):
    return rel_entr(p, q).sum(-1).mean()


def similarity(x):
    x = x.reshape(len(x), -1)
    return length_one(x @ x.T)


def huber(d):
    return np.where(abs(d) < 1, 0.5 * d**2, abs(d) - 0.5)


def relational(s, t):
    """Both sums, by loops over pairs and triplets."""
    number, total = len(s), 0.0
    distances = []
    for x in (s, t):
        d = np.array([[np.linalg.norm(a - b) for b in x] for a in x])
        distances.append(d / (d.sum() / (number * (number - 1))))
    total += 25 * huber(distances[0] - distances[1]).mean()
    angles = 0.0
    for i, j, k in itertools.product(range(number), repeat=3):
        cosines = []
        for x in (s, t):
            a, b = x[j] - x[i], x[k] - x[i]
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            cosines.append(a @ b / lengths if lengths else 0.0)
        angles += huber(cosines[0] - cosines[1])
    return total + 50 * angles / number**3


def neighbours(x):
    x = (1 + length_one(x) @ length_one(x).T) / 2
    return x / x.sum(1, keepdims=True)


def discrepancy(s, t):
    s, t = (length_one(x.reshape(*x.shape[:2], -1)) for x in (s, t))

    def k(a, b):
        return np.mean([[(x @ y) ** 2 for x in a] for y in b])

    return np.mean([k(a, a) + k(b, b) - 2 * k(a, b) for a, b in zip(s, t, strict=True)])


def alignment(s, t):
    x, y = (z - z.mean(0) for z in (s, t))
    norm = np.linalg.norm
    return 1 - norm(y.T @ x) ** 2 / (norm(x.T @ x) * norm(y.T @ y))


def gaussian(s, t):
    return (0.5 * np.log(2.0) + (t - s) ** 2 / (2 * 2.0)).mean()


def image(channels):
    return (4, channels, 3, 2)


ROSTER = {
    "HiddenMSE": Row(
        L.HiddenMSE,
        lambda s, t: ((s - t) ** 2).mean(),
        ((4, 3, 5),) * 2,
        "hidden_mse",
        mask=(4, 3),
        symmetric=True,
    ),
    "HiddenMSE normalize": Row(
        lambda: L.HiddenMSE(normalize=True),
        lambda s, t: ((length_one(s) - length_one(t)) ** 2).mean(),
        ((4, 3, 5),) * 2,
        "hidden_mse",
        mask=(4, 3),
        symmetric=True,
    ),
    "HiddenCosine": Row(
        L.HiddenCosine,
        lambda s, t: 1 - (length_one(s) * length_one(t)).sum(-1).mean(),
        ((4, 3, 5),) * 2,
        "hidden_cosine",
        mask=(4, 3),
        symmetric=True,
    ),
    "AttentionTransfer": Row(
        L.AttentionTransfer,
        lambda s, t: ((activation_map(s) - activation_map(t)) ** 2).mean(),
        (image(3), image(5)),
        "attention_transfer",
        symmetric=True,
    ),
    "AttentionMSE": Row(
        L.AttentionMSE,
        lambda s, t: ((s - t) ** 2).mean(),
        ((4, 2, 3, 3),) * 2,
        "attention_mse",
        mask=None,
        symmetric=True,
    ),
    "AttentionKL": Row(
        L.AttentionKL,
        lambda s, t: divergence(t, s),
        ((4, 2, 3, 3),) * 2,
        "attention_kl",
        mask=None,
        probabilities=True,
    ),
    "MiniLMRelation": Row(
        lambda: L.MiniLMRelation(relation_heads=2),
        lambda s, t: divergence(np.exp(relation(t, 2)), np.exp(relation(s, 2))),
        ((4, 3, 4), (4, 3, 6)),
        "minilm_relation",
        mask=None,
    ),
    "SimilarityPreserving": Row(
        L.SimilarityPreserving,
        lambda s, t: ((similarity(s) - similarity(t)) ** 2).mean(),
        (image(3), image(5)),
        "similarity_preserving",
        symmetric=True,
    ),
    "RelationalKD": Row(
        L.RelationalKD, relational, ((4, 5), (4, 3)), "relational_kd", symmetric=True
    ),
    "ProbabilisticTransfer": Row(
        L.ProbabilisticTransfer,
        lambda s, t: divergence(neighbours(t), neighbours(s)) / len(s),
        ((4, 5), (4, 3)),
        "probabilistic_transfer",
    ),
    "NeuronSelectivity": Row(
        L.NeuronSelectivity,
        discrepancy,
        (image(3), image(5)),
        "neuron_selectivity",
        symmetric=True,
    ),
    "CKA": Row(L.CKA, alignment, ((4, 5), (4, 3)), "cka", symmetric=True),
    "VariationalInformation": Row(
        lambda: L.VariationalInformation(channels=3, variance=2.0),
        gaussian,
        (image(3), image(3)),
        "variational_information",
        zero_at_identity=False,
        symmetric=True,
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "entry" in metafunc.fixturenames:
        metafunc.parametrize("entry", ROSTER.values(), ids=list(ROSTER))


@pytest.fixture
def roster() -> dict[str, Row]:
    return ROSTER
