"""When distillation acts: ``end_dur`` from 0.1 to 1.0, and ``start_dur``.

``python -m tests.benchmarks.evidence.scheduling --output DIR``
"""

from dataclasses import replace

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import (
    ALONE,
    DISTILLED,
    OTHER,
    legend_below,
    level_line,
    line,
    panels,
    title,
)
from tests.benchmarks.evidence.runs import ALONE_RATES, DISTILLED_RATES, Scale, Setting, teachers_of
from tests.benchmarks.evidence.tables import compare, level

PLAIN, ALWAYS = "alone", "end_dur=1.0"
ENDS = (0.1, 0.2, 0.3, 0.5, 0.7)
STARTS = (0.3, 0.6)


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, and distilled in windows that end early or begin late."""
    always = Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale))
    return {
        PLAIN: Setting(ALONE_RATES, scale.steps),
        **{f"end_dur={end}": replace(always, end_dur=end) for end in ENDS},
        ALWAYS: always,
        **{f"start_dur={start}": replace(always, start_dur=start) for start in STARTS},
    }


def show(document: Document) -> str:
    """Return all rows beside the student alone, then beside distillation throughout."""
    seconds = {"CPU seconds": lambda row: level(document, row, "cpu_seconds", 1)}
    alone = compare(document, PLAIN, ("accuracy", "nll", "ece"), seconds)
    throughout = compare(document, ALWAYS)
    return f"{alone}\n\nThe same beside distillation throughout:\n\n{throughout}"


def draw(document: Document) -> Figure:
    """Draw quality over the window's end, and over its beginning."""
    figure, axes = panels(3, width=4.0)
    ends = [(end, f"end_dur={end}") for end in (*ENDS, 1.0)]
    starts = [(0.0, ALWAYS), *((start, f"start_dur={start}") for start in STARTS)]
    for each, metric in zip(axes, ("accuracy", "nll", "ece"), strict=True):
        level_line(each, document, PLAIN, metric, ALONE)
        line(each, document, ends, metric, ("from 0 to end_dur", DISTILLED, "o"))
        line(each, document, starts, metric, ("from start_dur to 1", OTHER, "s"))
        each.set_xlabel("end_dur, start_dur")
        title(each, metric)
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment("scheduling", rows, show, draw, reuse=("sampling",))

if __name__ == "__main__":
    main(EXPERIMENT)
