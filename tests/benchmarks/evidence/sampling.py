"""One of n teachers for each batch against all n: quality, and the time of a step.

The claim is that of arXiv 2211.00683: the quality of the ensemble at the cost of one.
``python -m tests.benchmarks.evidence.sampling --output DIR``
"""

from dataclasses import replace

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import (
    ALONE,
    DISTILLED,
    OTHER,
    THIRD,
    legend_below,
    level_line,
    line,
    panels,
    title,
)
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    DISTILLED_RATES,
    TEACHERS,
    Scale,
    Setting,
    teachers_of,
)
from tests.benchmarks.evidence.tables import compare, difference, rows_of, step_ms, table

PLAIN, ONE = "alone", "1 teacher"
KINDS = {"sample 1 of": (DISTILLED, "o"), "mean probabilities of": (OTHER, "s")}
LOGITS = f"mean logits of {TEACHERS}"


def rows(seed: int, scale: Scale) -> Rows:
    """Return the student alone, with one teacher, and with 2 to 5 in either way.

    Each seed begins with another teacher, so that the teachers count alike in every row.
    """
    one = Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale))
    result = {PLAIN: Setting(ALONE_RATES, scale.steps), ONE: one}
    for count in range(2, TEACHERS + 1):
        several = replace(one, teachers=teachers_of(seed, scale, count))
        result[f"sample 1 of {count}"] = replace(several, n_teachers_to_sample=1)
        result[f"mean probabilities of {count}"] = several
    return result | {LOGITS: replace(several, combine="logits")}


def show(document: Document) -> str:
    """Return all rows, and what sampling loses to the mean of as many teachers."""
    rows = compare(document, PLAIN, ("accuracy", "nll", "ece"), step_ms(document))
    lines = []
    for count in range(2, TEACHERS + 1):
        pair = f"mean probabilities of {count}", f"sample 1 of {count}"
        metrics = ("accuracy", "nll", "step_cpu_ms")
        lines.append([str(count), *(difference(document, *pair, metric) for metric in metrics)])
    headers = ["teachers", "sampled minus mean: accuracy %", "NLL", "CPU ms a step"]
    return f"{rows}\n\n{table(headers, lines)}"


def draw(document: Document) -> Figure:
    """Draw quality and time over the number of teachers."""
    figure, axes = panels(3, width=4.0)
    for each, metric in zip(axes, ("accuracy", "nll", "step_cpu_ms"), strict=True):
        level_line(each, document, PLAIN, metric, ALONE)
        for kind, (colour, marker) in KINDS.items():
            points = [(1, ONE), *((n, f"{kind} {n}") for n in range(2, TEACHERS + 1))]
            line(each, document, points, metric, (f"{kind} n", colour, marker))
        if LOGITS in rows_of(document):
            line(each, document, [(TEACHERS, LOGITS)], metric, ("mean logits of n", THIRD, "D"))
        each.set_xlabel("teachers")
        title(each, metric)
    axes[2].set_title("CPU milliseconds a step (lower is better)", fontsize=10)
    axes[2].set_ylim(bottom=0)
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment("sampling", rows, show, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
