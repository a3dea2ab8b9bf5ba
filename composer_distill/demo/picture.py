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
from composer_distill.demo.report import SMOKE_NOTE
from composer_distill.demo.settings import Settings
from composer_distill.demo.summary import of_arm

# Okabe and Ito's orange and blue, which the colour-blind tell apart; markers differ as well
_STYLES = {ALONE: ("#D55E00", "s"), DISTILLED: ("#0072B2", "o")}
_GREY = "#555555"
_LEVELS = [0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]


def draw(result: Result, settings: Settings, path: Path) -> None:
    """Write the picture to ``path`` as a PNG."""
    figure = Figure(figsize=(10, 3.6), dpi=130, layout="constrained")
    nll, accuracy, few = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    _curves(nll, result, "nll", 1)
    _curves(accuracy, result, "accuracy", 100)
    _log_scale(nll, result)
    nll.set_title("Test NLL in nats (lower is better)", fontsize=10)
    accuracy.set_title("Test accuracy in % (higher is better)", fontsize=10)
    nll.legend(frameon=False, fontsize=9)
    _bars(few, result)
    labels = of_arm(result.runs, TEACHER)[0].labels
    note = SMOKE_NOTE if settings.smoke else "mean and each seed"
    figure.suptitle(
        f"Digits: a perceptron alone, and distilled from a small CNN "
        f"({labels} labels, {settings.seeds} seeds; {note})",
        fontsize=11,
    )
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
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)


def _bars(axes: Axes, result: Result) -> None:
    names = {FEW_ALONE: ALONE, FEW_DISTILLED: DISTILLED}
    for position, (arm, style) in enumerate(names.items()):
        colour, marker = _STYLES[style]
        accuracies = [100 * run.scores.accuracy for run in of_arm(result.runs, arm)]
        axes.bar(position, mean(accuracies), width=0.6, color=colour, alpha=0.75)
        axes.scatter([position] * len(accuracies), accuracies, s=14, color="black", marker=marker)
        text = f"{mean(accuracies):.1f} %"
        axes.text(position, 4, text, ha="center", color="white", fontweight="bold")
    few, many = of_arm(result.runs, FEW_ALONE)[0].labels, of_arm(result.runs, TEACHER)[0].labels
    axes.set_xticks([0, 1], [f"alone,\n{few} labels", f"distilled, no labels,\n{many} images"])
    axes.set_ylim(0, 100)
    axes.set_title("Test accuracy in % with few labels", fontsize=10)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
