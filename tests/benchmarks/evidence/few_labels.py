"""Few labels, with and without the images that have none.

``python -m tests.benchmarks.evidence.few_labels --output DIR``
"""

from dataclasses import replace

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import (
    ALONE,
    DISTILLED,
    GREY,
    OTHER,
    THIRD,
    legend_below,
    line,
    panels,
    title,
)
from tests.benchmarks.evidence.runs import (
    DISTILLED_RATES,
    FEW_RATES,
    SMOOTHING,
    Scale,
    Setting,
    Teacher,
    teachers_of,
)
from tests.benchmarks.evidence.tables import (
    compare,
    difference,
    rows_of,
    setting_of,
    table,
    teachers_mean,
)

LABELS = (50, 100, 200)
METRICS = ("accuracy", "nll")
NLL_TICKS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
PLAIN, SMOOTHED = "alone", "alone, labels smoothed"
ON_LABELLED = "distilled on the labelled images"
ON_ALL = "distilled on 1000 unlabelled images"
SAME = "distilled on 1000 unlabelled images, teacher of the same labels"
KINDS = {
    PLAIN: (ALONE, "s"),
    SMOOTHED: (THIRD, "^"),
    ON_LABELLED: (GREY, "D"),
    SAME: (OTHER, "P"),
    ON_ALL: (DISTILLED, "o"),
}


def rows(seed: int, scale: Scale) -> Rows:
    """Return, for each number of labels, students alone and distilled in three ways."""
    good = teachers_of(seed, scale)
    everything = Setting(
        DISTILLED_RATES, scale.steps, unlabelled=True, teachers=good, kd_loss_weight=1.0
    )
    result = {}
    for labels in LABELS:
        few = Setting(FEW_RATES, scale.steps, labels=labels)
        own = Teacher(seed, scale.teacher_steps // 5, labels)
        kinds = {
            PLAIN: few,
            SMOOTHED: replace(few, smoothing=SMOOTHING),
            ON_LABELLED: replace(few, rates=DISTILLED_RATES, teachers=good),
            SAME: replace(everything, teachers=(own,)),
        }
        result |= {f"{labels} labels: {kind}": setting for kind, setting in kinds.items()}
    return result | {f"no labels: {ON_ALL}": everything}


def show(document: Document) -> str:
    """Return all rows, each beside the student alone with as many labels."""

    def base(row: str) -> str:
        labels = row.partition(":")[0]
        return row if labels == "no labels" else f"{labels}: {PLAIN}"

    def teacher(row: str) -> str:
        if not setting_of(document, row)["teachers"]:
            return ""
        return f"{teachers_mean(document, row, 'accuracy'):.1f}"

    text = compare(document, base, more={"teacher's accuracy %": teacher})
    last = rows_of(document)[-1]
    lines = [
        [
            f"{labels} labels",
            *(difference(document, f"{labels} labels: {PLAIN}", last, m) for m in METRICS),
        ]
        for labels in LABELS
    ]
    gains = table(["last row minus alone with", "accuracy %, better on", "NLL, better on"], lines)
    return f"{text}\n\n{gains}"


def draw(document: Document) -> Figure:
    """Draw accuracy and NLL over the number of labels, a line for each kind of student."""
    figure, axes = panels(2, width=5.6, height=4.6)
    for each, metric in zip(axes, METRICS, strict=True):
        for kind, (colour, marker) in KINDS.items():
            name = f"no labels: {ON_ALL}" if kind == ON_ALL else None
            points = [(n, name or f"{n} labels: {kind}") for n in LABELS]
            line(each, document, points, metric, (kind, colour, marker))
        each.set(xlabel="labels", xscale="log")
        each.set_xticks(LABELS, labels=[str(n) for n in LABELS])
        each.set_xticks([], minor=True)
        title(each, metric)
    axes[1].set_yscale("log")
    low, high = axes[1].get_ylim()
    levels = [level for level in NLL_TICKS if low <= level <= high]
    axes[1].set_yticks(levels, labels=[f"{level:g}" for level in levels])
    axes[1].set_yticks([], minor=True)
    legend_below(figure, axes[0], columns=2)
    return figure


EXPERIMENT = Experiment("few_labels", rows, show, draw)

if __name__ == "__main__":
    main(EXPERIMENT)
