"""Steps and seconds to the plain student's final quality, the teacher's cost counted.

Each budget is a training of its own, its learning rate falling to zero: a point on the way of a
longer training would flatter neither side honestly.
``python -m tests.benchmarks.evidence.efficiency --output DIR``
"""

from dataclasses import replace
from statistics import mean

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, THIRD, legend_below, panels, title
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    DISTILLED_RATES,
    SMOOTHING,
    Scale,
    Setting,
    teachers_of,
)
from tests.benchmarks.evidence.tables import (
    TITLES,
    compare,
    first_as_good,
    level,
    rows_of,
    setting_of,
    table,
    teachers_mean,
    values,
)

KINDS = {"alone": (ALONE, "s"), "labels smoothed": (THIRD, "^"), "distilled": (DISTILLED, "o")}
SECONDS = (0.1, 0.5, 1, 2, 5, 10, 20)  # ticks
FACTORS = (0.25, 0.5, 1, 2, 4)


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, with smoothed labels and distilled, for five budgets."""
    alone = Setting(ALONE_RATES, scale.steps)
    kinds = {
        "alone": alone,
        "labels smoothed": replace(alone, smoothing=SMOOTHING),
        "distilled": Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale)),
    }
    budgets = [int(factor * scale.steps) for factor in FACTORS]
    return {
        f"{kind}, {steps} steps": replace(setting, steps=steps)
        for kind, setting in kinds.items()
        for steps in budgets
    }


def steps_of(document: Document) -> list[int]:
    """Return the budgets."""
    return [setting_of(document, row)["steps"] for row in rows_of_kind(document, "alone")]


def base_of(document: Document) -> str:
    """Return the plain student whose quality is to be reached: at the budget of all experiments."""
    return rows_of_kind(document, "alone")[FACTORS.index(1)]


def rows_of_kind(document: Document, kind: str) -> list[str]:
    """Return the rows of ``kind`` by rising budget."""
    return [row for row in rows_of(document) if row.startswith(f"{kind},")]


def reaching(document: Document, kind: str, metric: str) -> str | None:
    """Return the shortest row of ``kind`` whose mean is as good as the plain student's."""
    return first_as_good(document, rows_of_kind(document, kind), base_of(document), metric)


def show(document: Document) -> str:
    """Return all rows, then the cost of reaching the plain student's quality."""
    seconds = {
        "CPU seconds": lambda row: level(document, row, "cpu_seconds", 1),
        "wall seconds": lambda row: level(document, row, "wall_seconds", 1),
    }
    everything = compare(document, base_of(document), ("accuracy", "nll", "ece"), seconds)
    lines = [
        [TITLES[metric], kind, *reached(document, reaching(document, kind, metric))]
        for metric in ("nll", "accuracy")
        for kind in KINDS
    ]
    headers = ["quality", "student", "steps", "CPU seconds", "with its teacher's", "wall seconds"]
    text = f"Shortest budget whose mean is at least as good as that of {base_of(document)}:"
    return f"{everything}\n\n{text}\n\n{table(headers, lines)}"


def reached(document: Document, row: str | None) -> list[str]:
    """Return steps, CPU seconds without and with the teacher's training, and wall seconds."""
    if row is None:
        return ["not reached", "", "", ""]
    own = mean(values(document, row, "cpu_seconds"))
    setting = setting_of(document, row)
    more = teachers_mean(document, row, "cpu_seconds") if setting["teachers"] else 0.0
    wall = mean(values(document, row, "wall_seconds"))
    return [str(setting["steps"]), f"{own:.1f}", f"{own + more:.1f}", f"{wall:.1f}"]


def draw(document: Document) -> Figure:
    """Draw quality over steps and over CPU seconds."""
    figure, axes = panels(4, width=3.7)
    for index, each in enumerate(axes):
        metric, over = ("nll", "accuracy")[index // 2], ("steps", "cpu_seconds")[index % 2]
        for kind, (colour, marker) in KINDS.items():
            names = rows_of_kind(document, kind)
            across = [
                setting_of(document, row)["steps"]
                if over == "steps"
                else mean(values(document, row, over))
                for row in names
            ]
            heights = [mean(values(document, row, metric)) for row in names]
            each.plot(across, heights, color=colour, marker=marker, label=kind)
        target = mean(values(document, base_of(document), metric))
        each.axhline(target, color=ALONE, linestyle="--", linewidth=1.2, label="to be reached")
        each.set(xscale="log", xlabel="steps" if over == "steps" else "student's CPU seconds")
        ticks = steps_of(document) if over == "steps" else SECONDS
        low, high = each.get_xlim()
        ticks = [tick for tick in ticks if low <= tick <= high]
        each.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        each.set_xticks([], minor=True)
        title(each, metric)
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment("efficiency", rows, show, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
