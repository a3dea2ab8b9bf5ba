"""What the pictures of the evidence have in common."""

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.evidence.tables import TITLES, values

Document = dict[str, Any]

# Okabe and Ito's colours, which the colour-blind tell apart; markers differ as well
ALONE, DISTILLED, OTHER, THIRD = "#D55E00", "#0072B2", "#009E73", "#CC79A7"
GREY = "#555555"


def panels(count: int, width: float = 4.6, height: float = 3.8) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels side by side."""
    figure = Figure(figsize=(width * count, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for each in axes:
        each.grid(axis="y", color="#dddddd", linewidth=0.8)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def line(
    axes: Axes,
    document: Document,
    points: Sequence[tuple[float, str]],
    metric: str,
    style: tuple[str, str, str],
) -> None:
    """Draw the mean of each row over its ``x``, and its seeds as faint dots."""
    label, colour, marker = style
    for x, row in points:
        seeds = values(document, row, metric)
        axes.plot([x] * len(seeds), seeds, ".", color=colour, alpha=0.35, markersize=5)
    means = [mean(values(document, row, metric)) for _, row in points]
    axes.plot([x for x, _ in points], means, color=colour, marker=marker, label=label)


def dots(
    axes: Axes,
    document: Document,
    rows: Mapping[str, str],
    metric: str,
    colours: Mapping[str, str],
) -> None:
    """Draw the seeds of each row as dots, the first row on top, by the names that are given."""
    for place, row in enumerate(reversed(rows.values())):
        found = values(document, row, metric)
        axes.plot(found, [place] * len(found), "o", color=colours[row], alpha=0.6)
    axes.set_yticks(range(len(rows)), list(reversed(rows)), fontsize=8)


def level_line(axes: Axes, document: Document, row: str, metric: str, colour: str = ALONE) -> None:
    """Draw a row as a dashed line across the panel."""
    height = mean(values(document, row, metric))
    axes.axhline(height, color=colour, linestyle="--", linewidth=1.2, label=row)


def title(axes: Axes, metric: str) -> None:
    """Say what the panel shows."""
    better = "lower" if metric in ("nll", "ece") else "higher"
    axes.set_title(f"Test {TITLES.get(metric, metric)} ({better} is better)", fontsize=10)


def legend_below(figure: Figure, axes: Axes, columns: int = 4) -> None:
    """Put the legend of one panel under all."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False)
