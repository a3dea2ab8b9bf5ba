"""The demo's picture: curves with all labels, bars with few."""

from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from composer_distill.demo.experiment import (
    ALONE,
    DISTILLED,
    FEW_ALONE,
    FEW_DISTILLED,
    TEACHER,
    Result,
    Run,
)
from composer_distill.demo.settings import Settings
from composer_distill.demo.summary import of_arm

# Okabe and Ito's orange and blue, which the colour-blind tell apart; markers differ as well
_STYLES = {ALONE: ("#D55E00", "s"), DISTILLED: ("#0072B2", "o")}
_GREY = "#555555"
_LEVELS = [0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]


def draw(result: Result, settings: Settings, path: Path) -> None:
    """Write the picture to ``path`` as a PNG."""
    figure = Figure(figsize=(10, 3.9), dpi=130, layout="constrained")
    nll, accuracy, few = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    _curves(nll, result, "nll", 1)
    _curves(accuracy, result, "accuracy", 100)
    _log_scale(nll, result)
    nll.set_title("Test NLL in nats (lower is better)", fontsize=10)
    accuracy.set_title("Test accuracy in %", fontsize=10)
    handles, names = nll.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    _bars(few, result)
    labels = of_arm(result.runs, TEACHER)[0].labels
    title = (
        f"Digits, {labels} labels: a student alone, and distilled ({settings.seeds} seeds and mean)"
    )
    figure.suptitle(f"Smoke setting, no result. {title}" if settings.smoke else title, fontsize=11)
    figure.savefig(path)


def _curves(axes: Axes, result: Result, metric: str, factor: float) -> None:
    for arm, (colour, marker) in _STYLES.items():
        runs = of_arm(result.runs, arm)
        steps = [point.step for point in runs[0].curve]
        curves = [_values(run, metric, factor) for run in runs]
        for curve in curves:
            axes.plot(steps, curve, color=colour, alpha=0.3, linewidth=0.8)
        means = [mean(values) for values in zip(*curves, strict=True)]
        axes.plot(steps, means, color=colour, marker=marker, markersize=4, linewidth=2, label=arm)
    teacher = factor * getattr(of_arm(result.runs, TEACHER)[0].scores, metric)
    axes.axhline(teacher, color=_GREY, linestyle="--", linewidth=1, label=TEACHER)
    axes.set_xlabel("batches trained")
    axes.set_xlim(left=0)
    _tidy(axes)


def _values(run: Run, metric: str, factor: float) -> list[float]:
    return [factor * getattr(point.scores, metric) for point in run.curve]


def _log_scale(axes: Axes, result: Result) -> None:
    """Show the NLL in equal ratios, ticked at plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [level for level in _LEVELS if low <= level <= high]
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _bars(axes: Axes, result: Result) -> None:
    pair = [of_arm(result.runs, arm) for arm in (FEW_ALONE, FEW_DISTILLED)]
    heights = [[100 * run.scores.accuracy for run in runs] for runs in pair]
    for position, (colour, _) in enumerate(_STYLES.values()):
        height = mean(heights[position])
        axes.bar(position, height, width=0.6, color=colour, alpha=0.75)
        text = f"{height:.1f} %"
        axes.text(position, 4, text, ha="center", color="white", fontweight="bold")
    for each in zip(*heights, strict=True):
        axes.plot((0, 1), each, color="black", marker=".", markersize=6, linewidth=0.6)
    few, many = pair[0][0].labels, of_arm(result.runs, TEACHER)[0].labels
    names = [f"alone,\n{few} labels", f"distilled, no labels,\n{many} images"]
    axes.set_xticks([0, 1], labels=names, fontsize=9)
    axes.set_xlim(-0.55, 1.55)
    axes.set_ylim(0, 100)
    axes.set_title("Test accuracy in % with few labels", fontsize=10)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
