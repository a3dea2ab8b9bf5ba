"""Means, paired differences and Markdown tables from an experiment's JSON."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from tabulate import tabulate

from composer_distill.demo.summary import Spread, spread

Document = dict[str, Any]
LOWER_IS_BETTER = ("nll", "ece", "step_cpu_ms", "upright_nll")
FACTORS = {"accuracy": 100.0, "ece": 100.0, "upright_accuracy": 100.0, "agreement": 100.0}
PLACES = {"nll": 3, "upright_nll": 3}
TITLES = {
    "accuracy": "accuracy %",
    "nll": "NLL",
    "ece": "ECE %",
    "agreement": "agreement %",
    "upright_accuracy": "upright accuracy %",
    "upright_nll": "upright NLL",
}


def rows_of(document: Document) -> list[str]:
    """Return the names of the rows in the order of the experiment."""
    return list(dict.fromkeys(run["row"] for run in document["runs"]))


def runs_of(document: Document, row: str) -> list[dict[str, Any]]:
    """Return the runs of a row by seed."""
    return sorted((r for r in document["runs"] if r["row"] == row), key=lambda r: r["seed"])


def values(document: Document, row: str, metric: str) -> list[float]:
    """Return a row's values in the unit of the tables, by seed."""
    return [run[metric] * FACTORS.get(metric, 1.0) for run in runs_of(document, row)]


def setting_of(document: Document, row: str) -> dict[str, Any]:
    """Return the setting of a row's first seed."""
    return runs_of(document, row)[0]["setting"]


def changes(document: Document, base: str, row: str, metric: str) -> list[float]:
    """Return the differences of ``row`` from ``base``, seed by seed."""
    pairs = zip(values(document, base, metric), values(document, row, metric), strict=True)
    return [after - before for before, after in pairs]


def level(document: Document, row: str, metric: str, places: int | None = None) -> str:
    """Return mean and standard deviation over the seeds."""
    return _text(spread(values(document, row, metric)), metric, places)


def difference(document: Document, base: str, row: str, metric: str) -> str:
    """Return the mean paired difference, its standard deviation, and on how many seeds it wins."""
    if row == base:
        return ""
    moved = changes(document, base, row, metric)
    wins = sum(change < 0 if metric in LOWER_IS_BETTER else change > 0 for change in moved)
    return f"{_text(spread(moved), metric, sign=True)}, {wins} of {len(moved)}"


def first_as_good(document: Document, rows: Sequence[str], base: str, metric: str) -> str | None:
    """Return the first of ``rows`` whose mean is as good as that of ``base``, if one is."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    wanted = sign * mean(values(document, base, metric))
    return next((r for r in rows if sign * mean(values(document, r, metric)) >= wanted), None)


def teachers_mean(document: Document, row: str, key: str) -> float:
    """Return the mean of a number over the teachers of a row, each counted once."""
    names = {name for run in runs_of(document, row) for name in run["setting"]["teachers"]}
    return mean(document["teachers"][name][key] for name in names) * FACTORS.get(key, 1.0)


def compare(
    document: Document,
    base: str | Callable[[str], str],
    metrics: Sequence[str] = ("accuracy", "nll"),
    more: dict[str, Callable[[str], str]] | None = None,
    rows: Sequence[str] | None = None,
) -> str:
    """Return the Markdown table of all rows: levels, differences from ``base``, and ``more``."""
    more = {} if more is None else more
    headers = ["student"]
    for metric in metrics:
        headers += [TITLES.get(metric, metric), "difference, better on"]
    lines = []
    for row in rows_of(document) if rows is None else rows:
        beside = base if isinstance(base, str) else base(row)
        cells = [row]
        for metric in metrics:
            cells += [level(document, row, metric), difference(document, beside, row, metric)]
        lines.append([*cells, *(cell(row) for cell in more.values())])
    return table([*headers, *more], lines)


def table(headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table of texts as they are."""
    return tabulate(lines, headers, tablefmt="github", disable_numparse=True)


def step_ms(document: Document) -> dict[str, Callable[[str], str]]:
    """Return the columns of the time that a step takes."""
    return {
        "CPU ms a step": lambda row: level(document, row, "step_cpu_ms", 1),
        "wall ms a step": lambda row: level(document, row, "step_wall_ms", 1),
    }


def _text(value: Spread, metric: str, places: int | None = None, sign: bool = False) -> str:
    places = PLACES.get(metric, 2) if places is None else places
    return f"{value.mean:{'+' if sign else ''}.{places}f} ± {value.sd:.{places}f}"
