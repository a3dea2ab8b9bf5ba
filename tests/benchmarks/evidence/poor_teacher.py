"""The quality of the teacher against the student's gain.

``python -m tests.benchmarks.evidence.poor_teacher --output DIR``
"""

from dataclasses import replace
from statistics import mean

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import (
    ALONE,
    DISTILLED,
    GREY,
    OTHER,
    legend_below,
    level_line,
    panels,
    title,
)
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    DISTILLED_RATES,
    Scale,
    Setting,
    Teacher,
    teachers_of,
)
from tests.benchmarks.evidence.tables import compare, rows_of, setting_of, teachers_mean, values

PLAIN, GOOD = "alone", "the good teacher"
FEW_STEPS, FEW_LABELS = (10, 30, 60, 120, 300), (50, 100, 200)


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, and with teachers of few steps or few labels."""
    good = Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale))
    short = {f"teacher of {n} steps": Teacher(seed, min(n, scale.teacher_steps)) for n in FEW_STEPS}
    steps = scale.teacher_steps // 5
    poor = {f"teacher of {n} labels": Teacher(seed, steps, n) for n in FEW_LABELS}
    return {
        PLAIN: Setting(ALONE_RATES, scale.steps),
        **{name: replace(good, teachers=(each,)) for name, each in (short | poor).items()},
        GOOD: good,
    }


def show(document: Document) -> str:
    """Return all rows with their teachers' quality."""

    def of_teacher(key: str, places: int):
        def cell(row: str) -> str:
            if not setting_of(document, row)["teachers"]:
                return ""
            return f"{teachers_mean(document, row, key):.{places}f}"

        return cell

    columns = {"teacher's accuracy %": of_teacher("accuracy", 1), "NLL": of_teacher("nll", 3)}
    return compare(document, PLAIN, ("accuracy", "nll", "ece"), columns)


def draw(document: Document) -> Figure:
    """Draw each student's quality over its teacher's."""
    figure, axes = panels(2)
    colours = {"steps": (DISTILLED, "o"), "labels": (OTHER, "s"), "teacher": (GREY, "*")}
    for each, metric in zip(axes, ("accuracy", "nll"), strict=True):
        level_line(each, document, PLAIN, metric, ALONE)
        for kind, (colour, marker) in colours.items():
            rows = [row for row in rows_of(document) if row.endswith(kind)]
            across = [teachers_mean(document, row, metric) for row in rows]
            heights = [mean(values(document, row, metric)) for row in rows]
            label = GOOD if kind == "teacher" else f"teacher of few {kind}"
            style = {"color": colour, "marker": marker, "markersize": 8, "label": label}
            each.plot(across, heights, linestyle="-", linewidth=1, **style)
        every = [teachers_mean(document, row, metric) for row in rows_of(document)[1:]]
        bounds = [min(every), max(every)]
        each.plot(bounds, bounds, color=GREY, linewidth=0.8, linestyle=":", label="its teacher")
        each.set_xlabel(f"teacher's {'accuracy %' if metric == 'accuracy' else 'NLL'}")
        title(each, metric)
    axes[1].set(xscale="log", yscale="log")
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment("poor_teacher", rows, show, draw, reuse=("sampling",))

if __name__ == "__main__":
    main(EXPERIMENT)
