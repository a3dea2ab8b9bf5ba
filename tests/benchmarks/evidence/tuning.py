"""How both sides were tuned: on images kept from the training set, by their NLL.

``python -m tests.benchmarks.evidence.tuning --output DIR``
"""

from dataclasses import replace
from statistics import mean

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, OTHER, panels
from tests.benchmarks.evidence.runs import ALONE_RATES, Rates, Scale, Setting, Teacher
from tests.benchmarks.evidence.tables import level, rows_of, table, values

FEW = 100
FEW_ALONE = f"{FEW} labels alone"
WEIGHT_DECAYS, TEMPERATURES = (0.03, 0.1, 0.3), (1.0, 2.0, 4.0)
RATES, FEW_RATES = (3e-3, 1e-2, 3e-2), (3e-4, 1e-3, 3e-3)
DISTILLED_DECAY = 0.1
SMOOTHINGS = (0.02, 0.05, 0.1, 0.2)
# Each group of rows chooses its best: by what
CRITERIA = {"alone": "nll", "distilled": "nll", FEW_ALONE: "nll", "smoothed": "accuracy"}


def rows(seed: int, scale: Scale) -> Rows:
    """Return a grid for the student alone, distilled, and with few labels; then smoothing."""
    teacher = Teacher(seed, scale.teacher_steps, validation=True)
    alone = Setting(Rates(0.0, 0.0), scale.steps, validation=True)
    few = replace(alone, labels=FEW)
    grid: Rows = {}
    for rate, few_rate in zip(RATES, FEW_RATES, strict=True):
        for decay in WEIGHT_DECAYS:
            grid[cell("alone", rate, "wd", decay)] = replace(alone, rates=Rates(rate, decay))
            grid[cell(FEW_ALONE, few_rate, "wd", decay)] = replace(
                few, rates=Rates(few_rate, decay)
            )
        for temperature in TEMPERATURES:
            grid[cell("distilled", rate, "T", temperature)] = replace(
                alone,
                rates=Rates(rate, DISTILLED_DECAY),
                teachers=(teacher,),
                temperature=temperature,
            )
    for smoothing in SMOOTHINGS:
        grid[f"smoothed: by {smoothing:g}"] = Setting(
            ALONE_RATES, scale.steps, smoothing=smoothing, validation=True
        )
    return grid


def cell(group: str, rate: float, name: str, value: float) -> str:
    """Return what the table calls a cell of a grid."""
    return f"{group}: lr {rate:g}, {name} {value:g}"


def best(document: Document, group: str) -> str:
    """Return the row of ``group`` that its criterion prefers, the mean over the seeds."""
    metric = CRITERIA[group]
    sign = 1 if metric == "nll" else -1
    chosen = [row for row in rows_of(document) if row.startswith(f"{group}:")]
    return min(chosen, key=lambda row: sign * mean(values(document, row, metric)))


def show(document: Document) -> str:
    """Return all rows, the chosen ones marked."""
    lines = []
    for group, metric in CRITERIA.items():
        chosen = best(document, group)
        for row in rows_of(document):
            if row.startswith(f"{group}:"):
                cells = [level(document, row, each) for each in ("accuracy", "nll")]
                lines.append([row, *cells, f"best {metric}" if row == chosen else ""])
    return table(["student", "validation accuracy %", "validation NLL", "chosen"], lines)


def draw(document: Document) -> Figure:
    """Draw the validation NLL over the learning rate, a line for each value of the other axis."""
    grids = [
        ("alone", RATES, "wd", WEIGHT_DECAYS, ALONE),
        ("distilled", RATES, "T", TEMPERATURES, DISTILLED),
        (FEW_ALONE, FEW_RATES, "wd", WEIGHT_DECAYS, OTHER),
    ]
    figure, axes = panels(len(grids), width=3.8)
    for each, (group, rates, name, others, colour) in zip(axes, grids, strict=True):
        for value, marker, alpha in zip(others, "osD", (0.35, 0.65, 1.0), strict=True):
            rows = [cell(group, rate, name, value) for rate in rates]
            heights = [mean(values(document, row, "nll")) for row in rows]
            label = f"{name} {value:g}"
            each.plot(rates, heights, color=colour, alpha=alpha, marker=marker, label=label)
        each.set(xscale="log", xlabel="learning rate")
        each.set_xticks(rates, labels=[f"{rate:g}" for rate in rates])
        each.set_xticks([], minor=True)
        each.set_title(f"{group}: validation NLL", fontsize=10)
        each.legend(fontsize=8)
    return figure


EXPERIMENT = Experiment("tuning", rows, show, draw, seeds=2)

if __name__ == "__main__":
    main(EXPERIMENT)
