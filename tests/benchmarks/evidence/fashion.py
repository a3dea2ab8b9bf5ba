"""Students of three sizes on Fashion-MNIST, alone and taught by three larger networks.

``python -m tests.benchmarks.evidence.fashion --output DIR`` needs Debian's dataset-fashion-mnist.
"""

from dataclasses import replace
from statistics import mean

from matplotlib.figure import Figure

from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.fashion_runs import FAST, Scale, Setting, Teacher, missing, run
from tests.benchmarks.evidence.plots import (
    ALONE,
    DISTILLED,
    OTHER,
    line,
    panels,
    title,
)
from tests.benchmarks.evidence.tables import (
    compare,
    first_as_good,
    level,
    rows_of,
    setting_of,
    table,
    teachers_mean,
    values,
)

WIDTHS = {"small": 4, "medium": 8, "large": 16}
GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
# The best of the grid's rows for the medium student, which a test compares with them
RATES = {"alone": 1e-2, "distilled": 3e-2, "few labels": 3e-4}
KINDS = ("alone", "mean of 3")
STYLES = ((ALONE, "s"), (DISTILLED, "o"), (OTHER, "D"))
TUNING, SMOOTHING, TEACHERS = "tuning, ", 0.1, 3
FACTORS = (0.5, 0.75)  # of the steps: trainings of their own
TWICE = "twice as long"
LIVE = "live for a quarter of the steps, "
FEW, MEANS = "1 % of labels: ", tuple(f"mean of {n}" for n in range(1, TEACHERS + 1))


def rows(seed: int, scale: Scale) -> Rows:
    """Return the tuning with the first seed, then all students."""
    found = tuning(scale) if seed == 1 else {}
    for size in WIDTHS:
        found |= of_size(size, seed, scale)
    return found | of_medium(seed, scale) | budgets(seed, scale) | with_few(seed, scale)


def teachers_of(seed: int, scale: Scale) -> tuple[Teacher, ...]:
    """Return the teachers of all labels: each seed begins with its own."""
    seeds = [(seed - 1 + i) % TEACHERS + 1 for i in range(TEACHERS)]
    images = scale.images
    return tuple(Teacher(each, scale.teacher_steps, images, images) for each in seeds)


def setting(scale: Scale, size: str, kind: str, rate: float | None = None) -> Setting:
    """Return a student of a size and a kind of tuning, alone so far."""
    rate = RATES[kind] if rate is None else rate
    labels = scale.few if kind == "few labels" else scale.images
    return Setting(WIDTHS[size], rate, scale.steps, scale.images, labels)


def tuning(scale: Scale) -> dict[str, Setting]:
    """Return the grid of the medium student, scored on the images held out."""
    found = {}
    for kind, rate in ((kind, rate) for kind in RATES for rate in GRID):
        each = replace(setting(scale, "medium", kind, rate), validation=True)
        if kind == "distilled":
            each = replace(each, teachers=teachers_of(1, scale), cached=True)
        found[f"{TUNING}{kind}: {rate:g}"] = each
    return found


def taught(size: str, seed: int, scale: Scale, count: int = TEACHERS) -> Setting:
    """Return a student of a size that learns from the kept answers of so many teachers."""
    teachers = teachers_of(seed, scale)[:count]
    return replace(setting(scale, size, "distilled"), teachers=teachers, cached=True)


def of_size(size: str, seed: int, scale: Scale) -> dict[str, Setting]:
    """Return a size alone and distilled from the mean of three, the medium one with controls."""
    alone = setting(scale, size, "alone")
    found = {f"{size}: alone": alone, f"{size}: {MEANS[-1]}": taught(size, seed, scale)}
    if size == "medium":
        found[f"{size}: labels smoothed"] = replace(alone, smoothing=SMOOTHING)
        found[f"{size}: {TWICE}"] = replace(alone, steps=2 * scale.steps)
    return found


def of_medium(seed: int, scale: Scale) -> dict[str, Setting]:
    """Return what is tried with the medium student alone; a teacher of features runs live."""
    three, one = taught("medium", seed, scale), taught("medium", seed, scale, 1)
    found = {
        MEANS[0]: one,
        MEANS[1]: taught("medium", seed, scale, 2),
        "1 of 3 sampled": replace(three, n_teachers_to_sample=1),
        f"{MEANS[0]} and AT": replace(one, cached=False, feature="AT"),
        f"{MEANS[0]} and SP": replace(one, cached=False, feature="SP"),
        f"{MEANS[2]}, end_dur=0.5": replace(three, end_dur=0.5),
        f"{MEANS[2]}, {TWICE}": replace(three, steps=2 * scale.steps),
    }
    return {f"medium: {name}": each for name, each in found.items()}


def budgets(seed: int, scale: Scale) -> dict[str, Setting]:
    """Return shorter trainings of the medium student, and short ones that time live teachers."""
    kinds = {kind: taught("medium", seed, scale, n) for n, kind in enumerate(MEANS, start=1)}
    found = {
        f"medium: {kind}, {factor:.0%} of the steps": replace(each, steps=int(factor * each.steps))
        for kind, each in kinds.items()
        for factor in FACTORS
    }
    live = {
        f"{LIVE}{kind}": replace(kinds[kind], cached=False, steps=scale.steps // 4)
        for kind in MEANS
    }
    return found | live


def with_few(seed: int, scale: Scale) -> dict[str, Setting]:
    """Return students of few labels, and those that see all images without any."""
    alone = setting(scale, "medium", "few labels")
    unlabelled = replace(taught("medium", seed, scale, 1), unlabelled=True)
    own = Teacher(seed, scale.teacher_steps // 4, scale.images, scale.few)
    found = {
        "alone": alone,
        "labels smoothed": replace(alone, smoothing=SMOOTHING),
        TWICE: replace(alone, steps=2 * scale.steps),
        "all images unlabelled, teacher of these labels": replace(unlabelled, teachers=(own,)),
        "all images unlabelled, teacher of all labels": unlabelled,
    }
    return {FEW + name: each for name, each in found.items()}


def show(document: Document) -> str:
    """Return the tables of sizes, of ways to distil, of few labels, of speed and of tuning."""
    names = [row for row in rows_of(document) if not row.startswith(TUNING)]
    sizes = [f"{size}: {kind}" for size in WIDTHS for kind in KINDS]
    ways = [row for row in names if row.startswith("medium") and "steps" not in row]
    few = [row for row in names if row.startswith(FEW)]
    tuned = [
        [row.removeprefix(TUNING), *(level(document, row, name) for name in ("accuracy", "nll"))]
        for row in rows_of(document)
        if row.startswith(TUNING)
    ]
    cpu = {"CPU ms a step": lambda row: level(document, row, "step_cpu_ms", 1)}
    metrics = ("accuracy", "nll", "ece")
    teachers = [f"{teachers_mean(document, sizes[-1], key):.2f}" for key in ("accuracy", "nll")]
    return "\n\n".join(
        [
            f"A teacher has {teachers[0]} % and {teachers[1]} nats on the average. Three sizes:",
            compare(document, lambda row: row.partition(":")[0] + ": alone", metrics, rows=sizes),
            "Ways to distil into the medium student:",
            compare(document, "medium: alone", metrics, cpu, ways),
            "550 of the 55,000 images with their labels:",
            compare(document, FEW + "alone", metrics, rows=few),
            "The shortest training whose mean is as good as that of the medium student alone:",
            speed(document),
            "The shorter trainings, each of its own, beside the whole one of the student alone:",
            compare(document, "medium: alone", rows=[row for row in names if "% of the" in row]),
            "The tuning of the medium student, on the images held out:",
            table(["rate", "accuracy %", "NLL"], tuned),
        ]
    )


def budgets_of(document: Document, kind: str) -> list[str]:
    """Return the rows of a kind of medium student by rising number of steps."""
    if kind == "alone":
        return ["medium: alone", f"medium: {TWICE}"]
    names = [f"medium: {kind}, {factor:.0%} of the steps" for factor in FACTORS]
    longest = [f"medium: {kind}, {TWICE}"] if kind == MEANS[2] else []
    return [*names, f"medium: {kind}", *longest]


def reaching(document: Document, kind: str, metric: str) -> str | None:
    """Return the shortest row of a kind whose mean is as good as the plain student's."""
    return first_as_good(document, budgets_of(document, kind), "medium: alone", metric)


def speed(document: Document) -> str:
    """Return the steps and CPU seconds to the plain student's quality, with 0 to 3 teachers."""
    lines = [
        [metric, kind, *cost(document, reaching(document, kind, metric), kind)]
        for metric in ("nll", "accuracy")
        for kind in ("alone", *MEANS)
    ]
    headers = [
        "quality",
        "student",
        "steps",
        "CPU s, cached",
        "with the keeping of answers",
        "CPU s, live",
        "training the teachers",
    ]
    return table(headers, lines)


def cost(document: Document, row: str | None, kind: str) -> list[str]:
    """Return steps, and seconds with kept answers, with their making, live, and of the teachers."""
    if row is None:
        return ["not reached", "", "", "", ""]
    own, steps = mean(values(document, row, "cpu_seconds")), setting_of(document, row)["steps"]
    if kind == "alone":
        return [str(steps), "", "", f"{own:.1f}", ""]
    count = len(setting_of(document, row)["teachers"])
    kept = count * teachers_mean(document, row, "cache_cpu_seconds")
    live = mean(values(document, LIVE + kind, "step_cpu_ms")) * steps / 1000
    training = count * teachers_mean(document, row, "cpu_seconds")
    return [str(steps), f"{own:.1f}", f"{own + kept:.1f}", f"{live:.1f}", f"{training:.0f}"]


def draw(document: Document) -> Figure:
    """Draw the three sizes, the medium student's budgets, and few labels."""
    figure, axes = panels(3, width=4.6)
    styles = dict(zip(KINDS, STYLES[:2], strict=True))
    for kind, (colour, marker) in styles.items():
        points = [(x, f"{size}: {kind}") for x, size in enumerate(WIDTHS)]
        line(axes[0], document, points, "accuracy", (kind, colour, marker))
    axes[0].set_xticks(range(len(WIDTHS)), list(WIDTHS))
    title(axes[0], "accuracy")
    for kind, style in zip((*KINDS, MEANS[0]), STYLES, strict=True):
        rows = budgets_of(document, kind)
        points = [(setting_of(document, row)["steps"], row) for row in rows]
        line(axes[1], document, points, "nll", (f"medium: {kind}", *style))
    axes[1].set_xlabel("steps of the medium student")
    title(axes[1], "nll")
    few = [row for row in rows_of(document) if row.startswith(FEW)]
    for place, row in enumerate(few):
        found = values(document, row, "accuracy")
        colour = DISTILLED if "images" in row else ALONE
        axes[2].plot([place] * len(found), found, "o", color=colour, alpha=0.6)
    names = [row.removeprefix(FEW) for row in few]
    for part in ("images ", ", ", "teacher of ", "labels "):
        names = [name.replace(part, f"{part.rstrip()}\n") for name in names]
    axes[2].set_xticks(range(len(few)), names, fontsize=7)
    axes[2].set_title("Test accuracy %, 550 labels (higher is better)", fontsize=10)
    for each in axes[:2]:
        each.legend(frameon=False, fontsize=8)
    return figure


EXPERIMENT = Experiment(
    "fashion",
    rows,
    show,
    draw,
    run=run,
    seeds=3,
    scales=(Scale(), FAST),
    packages=("mosaicml", "torch", "numpy"),
    missing=lambda scale, folder: missing(),
)

if __name__ == "__main__":
    main(EXPERIMENT)
