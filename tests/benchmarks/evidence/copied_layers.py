"""A student that begins with layers of its teacher against one that begins with random weights.

``python -m tests.benchmarks.evidence.copied_layers --output DIR``

Text, models and training are those of ``docs/examples/student_from_teacher.py``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composer.models import HuggingFaceModel
from matplotlib.figure import Figure

from composer_distill import student_from_teacher
from tests.benchmarks.evidence.experiment import Document, Experiment, OfOneTeacher, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, panels
from tests.benchmarks.evidence.students import by_logits, corpus, measured, taught, text
from tests.benchmarks.evidence.tables import compare, rows_of, values

UNTRAINED, BASE = "copied, untrained", "random, alone"


@dataclass(frozen=True)
class Scale:
    """How long student and teacher train, and how wide they are."""

    steps: int = 200
    teacher_steps: int = 800
    width: int = 64


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        scale: How long and how wide.
        copied: Whether it begins with the teacher's first and last layer.
        distilled: Whether it learns from the teacher's logits alone, else from the text.
        steps: How many batches it trains on.
    """

    scale: Scale
    copied: bool
    distilled: bool
    steps: int

    @property
    def teacher(self) -> str:
        """What files call the teacher."""
        return f"gpt2-6-layers-width-{self.scale.width}-steps-{self.scale.teacher_steps}"


def rows(seed: int, scale: Scale) -> Rows:
    """Return random and copied first weights, each alone and distilled, and untrained copies."""
    trained = {
        f"{origin}, {how}": Setting(scale, origin == "copied", how == "distilled", scale.steps)
        for origin in ("random", "copied")
        for how in ("alone", "distilled")
    }
    return {**trained, UNTRAINED: Setting(scale, True, False, 0)}


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    train, held_out, vocabulary = corpus()
    scale = setting.scale
    teacher = taught(
        text.make_model(vocabulary, layers=6, width=scale.width, seed=0),
        folder / "teachers" / f"{setting.teacher}.pt",
        lambda model: text.train(model, train, scale.teacher_steps, seed=0),
        lambda model: text.nats(model, held_out),
    )
    student = text.make_model(vocabulary, layers=2, width=scale.width, seed=seed)
    if setting.copied:
        student = HuggingFaceModel(student_from_teacher(teacher, layers=2))
    seconds = 0.0
    if setting.steps:
        term = by_logits(teacher) if setting.distilled else None
        seconds = text.train(student, train, setting.steps, seed, term)
    return measured(text.nats(student, held_out), seconds)


def show(document: Document) -> str:
    """Return the rows beside a random student alone, and the teacher's own loss."""
    (teacher,) = document["teachers"].values()
    beside = compare(document, BASE, ("nll",))
    copied = compare(
        document,
        "copied, alone",
        ("nll",),
        rows=[row for row in rows_of(document) if row.startswith("copied")],
    )
    return (
        f"Nats a character on held-out text; the teacher's are {teacher['nll']:.3f}.\n\n"
        f"{beside}\n\nBeside copied layers alone:\n\n{copied}"
    )


def draw(document: Document) -> Figure:
    """Draw each row's nats a character, and the teacher's."""
    figure, (axes,) = panels(1, width=6.0)
    (teacher,) = document["teachers"].values()
    colours = {"random": ALONE, "copied": DISTILLED}
    for place, row in enumerate(rows_of(document)):
        colour = OTHER if row == UNTRAINED else colours[row.partition(",")[0]]
        found = values(document, row, "nll")
        axes.plot([place] * len(found), found, "o", color=colour, alpha=0.6)
    axes.axhline(teacher["nll"], color=GREY, linestyle="--", label="teacher")
    names = [row.replace(", ", "\n") for row in rows_of(document)]
    axes.set_xticks(range(len(names)), names)
    axes.set_title("Nats a character (lower is better)", fontsize=10)
    axes.legend(frameon=False)
    return figure


EXPERIMENT = Experiment(
    "copied_layers",
    rows,
    show,
    draw,
    run=run,
    seeds=3,
    scales=(Scale(), Scale(3, 6, 32)),
    packages=("mosaicml", "torch", "transformers"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
