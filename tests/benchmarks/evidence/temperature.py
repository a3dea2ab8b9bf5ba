"""Temperature and the weight of the distillation loss: a heat map.

``python -m tests.benchmarks.evidence.temperature --output DIR``
"""

from collections.abc import Callable
from dataclasses import replace
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import panels
from tests.benchmarks.evidence.runs import ALONE_RATES, DISTILLED_RATES, Scale, Setting, teachers_of
from tests.benchmarks.evidence.tables import TITLES, changes, difference, level, table

PLAIN = "alone"
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)
WEIGHTS = (0.5, 0.9, 1.0)


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone and distilled at every temperature and weight."""
    good = Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale))
    return {
        PLAIN: Setting(ALONE_RATES, scale.steps),
        **{
            cell(temperature, weight): replace(good, temperature=temperature, kd_loss_weight=weight)
            for temperature in TEMPERATURES
            for weight in WEIGHTS
        },
    }


def cell(temperature: float, weight: float) -> str:
    """Return the name of a row."""
    return f"T={temperature:g}, weight {weight:g}"


def show(document: Document) -> str:
    """Return a grid of the differences from the student alone for each metric."""
    parts = []
    for metric in ("nll", "accuracy", "ece"):
        plain = level(document, PLAIN, metric)
        headers = [f"{TITLES[metric]}, alone {plain}", *(f"weight {w:g}" for w in WEIGHTS)]
        parts.append(
            table(headers, grid(lambda row, m=metric: difference(document, PLAIN, row, m)))
        )
    return "\n\n".join(parts)


def grid(text: Callable[[str], str]) -> list[list[str]]:
    """Return a line of texts for each temperature."""
    return [[f"T={t:g}", *(text(cell(t, weight)) for weight in WEIGHTS)] for t in TEMPERATURES]


def draw(document: Document) -> Figure:
    """Draw the differences in NLL and in accuracy as heat maps."""
    figure, axes = panels(2, width=4.8)
    for each, metric in zip(axes, ("nll", "accuracy"), strict=True):
        heat(each, document, metric)
    return figure


def heat(axes: Axes, document: Document, metric: str) -> None:
    """Draw one heat map: blue is better than alone, orange is worse."""
    cells = [
        [mean(changes(document, PLAIN, cell(t, w), metric)) for w in WEIGHTS] for t in TEMPERATURES
    ]
    bound = max(abs(value) for line in cells for value in line) or 1.0
    colours = "RdBu_r" if metric == "nll" else "RdBu"
    axes.imshow(cells, cmap=colours, vmin=-bound, vmax=bound, aspect="auto")
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            dark = abs(value) > 0.6 * bound
            text = f"{value:+.3f}" if metric == "nll" else f"{value:+.2f}"
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    axes.set_xticks(range(len(WEIGHTS)), labels=[f"{w:g}" for w in WEIGHTS])
    axes.set_yticks(range(len(TEMPERATURES)), labels=[f"{t:g}" for t in TEMPERATURES])
    axes.set(xlabel="kd_loss_weight (org_loss_weight is the rest of 1)", ylabel="temperature")
    axes.grid(visible=False)
    axes.set_title(f"Test {TITLES[metric]}: difference from alone", fontsize=10)


EXPERIMENT = Experiment("temperature", rows, show, draw, reuse=("sampling",), seeds=3)

if __name__ == "__main__":
    main(EXPERIMENT)
