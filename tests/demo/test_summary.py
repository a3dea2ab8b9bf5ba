import pytest

from composer_distill.demo.experiment import Run
from composer_distill.demo.scores import Scores
from composer_distill.demo.summary import compare, spread, summarize


def run(arm, seed, accuracy, nll):
    return Run(arm, seed, 10, 1.0 * seed, Scores(accuracy, nll, ece=0.5, agreement=0.5), [])


RUNS = [
    run("alone", 1, 0.50, 1.0),
    run("better", 2, 0.70, 0.7),
    run("alone", 2, 0.60, 0.8),
    run("better", 1, 0.50, 0.6),
]


def test_runs_are_paired_by_seed_not_by_order():
    difference = compare(RUNS, "alone", "better")
    assert difference["accuracy"].mean == pytest.approx(0.05)
    assert difference["accuracy"].sd == pytest.approx(0.0707, abs=1e-4)
    assert difference["nll"].mean == pytest.approx(-0.25)


def test_a_win_is_strict_and_knows_which_way_is_better():
    difference = compare(RUNS, "alone", "better")
    assert (difference["accuracy"].wins, difference["accuracy"].pairs) == (1, 2)
    assert difference["nll"].wins == 2
    assert difference["ece"].wins == 0
    assert compare(RUNS, "better", "alone")["nll"].wins == 0


def test_an_arm_that_lacks_a_seed_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        compare(RUNS[:3], "alone", "better")


def test_spreads():
    summary = summarize(RUNS, "alone")
    assert summary["accuracy"].mean == pytest.approx(0.55)
    assert summary["seconds"].mean == pytest.approx(1.5)
    assert spread([3.0]).sd == 0
