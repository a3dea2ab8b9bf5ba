"""Means, spreads and paired differences over the seeds."""

from dataclasses import dataclass, fields
from statistics import mean, stdev

from composer_distill.demo.experiment import Run
from composer_distill.demo.scores import Scores

METRICS = tuple(field.name for field in fields(Scores))
_LOWER_IS_BETTER = ("nll", "ece")


@dataclass(frozen=True)
class Spread:
    """A mean and the standard deviation around it (0 for a single value)."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Difference:
    """What distillation changed, pair by pair.

    Args:
        mean: Mean of distilled minus alone.
        sd: Standard deviation of the differences.
        wins: In how many pairs the distilled student is strictly better.
        pairs: How many pairs there are.
    """

    mean: float
    sd: float
    wins: int
    pairs: int


def of_arm(runs: list[Run], arm: str) -> list[Run]:
    """Return the runs of ``arm`` in the order of their seeds."""
    return sorted((run for run in runs if run.arm == arm), key=lambda run: run.seed)


def spread(values: list[float]) -> Spread:
    """Return the mean and the standard deviation of ``values``."""
    return Spread(mean(values), stdev(values) if len(values) > 1 else 0.0)


def summarize(runs: list[Run], arm: str) -> dict[str, Spread]:
    """Return the spread of each metric, and of the seconds, over the seeds of ``arm``."""
    chosen = of_arm(runs, arm)
    result = {name: spread([getattr(run.scores, name) for run in chosen]) for name in METRICS}
    return result | {"seconds": spread([run.seconds for run in chosen])}


def compare(runs: list[Run], alone: str, distilled: str) -> dict[str, Difference]:
    """Return the paired difference of each metric between two arms."""
    pairs = list(zip(of_arm(runs, alone), of_arm(runs, distilled), strict=True))
    return {name: _difference(pairs, name) for name in METRICS}


def _difference(pairs: list[tuple[Run, Run]], name: str) -> Difference:
    changes = [getattr(b.scores, name) - getattr(a.scores, name) for a, b in pairs]
    gains = [-change if name in _LOWER_IS_BETTER else change for change in changes]
    overall = spread(changes)
    return Difference(overall.mean, overall.sd, sum(gain > 0 for gain in gains), len(pairs))
