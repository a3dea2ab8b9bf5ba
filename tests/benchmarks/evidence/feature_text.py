"""DistilBERT's, TinyBERT's and MiniLMv2's recipes, beside logits and beside nothing, on text.

``python -m tests.benchmarks.evidence.feature_text --output DIR``

The text is CPython's own documentation, read character by character with 15 % masked, as in
``tests/benchmarks/text.py``. All models are small ones of ModernBERT's architecture.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from composer.models import HuggingFaceModel
from matplotlib.figure import Figure

from composer_distill import Distillation, FeatureTerm, KLDivergence, student_from_teacher
from composer_distill.losses import AttentionKL, HiddenCosine, HiddenMSE, MiniLMRelation
from tests.benchmarks import text
from tests.benchmarks.evidence.experiment import Document, Experiment, OfOneTeacher, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, panels
from tests.benchmarks.evidence.runs import DIGITS, today
from tests.benchmarks.evidence.tables import compare, level, rows_of, values

BATCH, RATE, TEACHER_LAYERS, LAYERS, WIDE, NARROW = 16, 3e-3, 4, 2, 96, 48


@dataclass(frozen=True)
class Scale:
    """How long student and teacher train."""

    steps: int = 250
    teacher_steps: int = 700


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        scale: How long.
        copied: Whether it is as wide as the teacher, and begins with its first and last layer.
        logits: Whether it learns from the teacher's logits.
        features: Which recipe's terms of features it has, if any.
    """

    scale: Scale
    copied: bool
    logits: bool = False
    features: str = ""

    @property
    def teacher(self) -> str:
        """What files call the teacher."""
        return f"modernbert-{TEACHER_LAYERS}-layers-width-{WIDE}-steps-{self.scale.teacher_steps}"


def rows(seed: int, scale: Scale) -> Rows:
    """Return copied students, then narrow ones of random weights, each from nothing to all."""
    return {
        "copied: alone": Setting(scale, True),
        "copied: logits": Setting(scale, True, logits=True),
        "copied: logits, cosine (DistilBERT)": Setting(scale, True, True, "distilbert"),
        "narrow: alone": Setting(scale, False),
        "narrow: logits": Setting(scale, False, logits=True),
        "narrow: logits, TinyBERT": Setting(scale, False, True, "tinybert"),
        "narrow: logits, MiniLMv2": Setting(scale, False, True, "minilm"),
    }


def feature_terms(recipe: str) -> list[FeatureTerm]:
    """Return a recipe's terms of features."""
    hidden, last = f"hidden_states.{LAYERS}", f"hidden_states.{TEACHER_LAYERS}"
    ours, theirs = f"attention.{LAYERS - 1}", f"attention.{TEACHER_LAYERS - 1}"
    return {
        "": [],
        "distilbert": [FeatureTerm(hidden, last, HiddenCosine())],
        "tinybert": [
            FeatureTerm(
                every("hidden_states", 1),
                by_two("hidden_states", 1),
                HiddenMSE(),
                projector="linear",
            ),
            FeatureTerm(every("attentions", 0), by_two("attentions", 0), AttentionKL()),
        ],
        "minilm": [FeatureTerm(ours, theirs, MiniLMRelation(relation_heads=4))],
    }[recipe]


def every(kind: str, first: int) -> list[str]:
    """Return the student's layers."""
    return [f"{kind}.{first + layer}" for layer in range(LAYERS)]


def by_two(kind: str, first: int) -> list[str]:
    """Return every second layer of the teacher."""
    step = TEACHER_LAYERS // LAYERS
    return [f"{kind}.{first + step * (layer + 1) - 1}" for layer in range(LAYERS)]


def distil(setting: Setting, teacher: HuggingFaceModel) -> Distillation | None:
    """Return the algorithm of a setting: 5 of the divergence at T=2 and 2 of the task, as there."""
    if not setting.logits:
        return None
    return Distillation(
        teacher,
        KLDivergence(temperature=2.0),
        kd_loss_weight=5.0,
        org_loss_weight=2.0,
        feature_terms=feature_terms(setting.features),
        telemetry=False,
    )


@lru_cache(maxsize=1)
def corpus() -> text.Corpus:
    """Return the text, read once."""
    return text.Corpus()


def make_model(layers: int, width: int, seed: int) -> HuggingFaceModel:
    """Return an encoder of random weights."""
    return text.make_model("masked", corpus(), layers, width, seed)


def fit(
    model: HuggingFaceModel, steps: int, seed: int, distillation: Distillation | None = None
) -> float:
    """Train a model in place and return the CPU seconds that it took."""
    data = corpus()
    return text.train(
        model, data.train, "masked", data.mask_id, steps, BATCH, RATE, seed, distillation
    )


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    teacher = taught(setting, folder)
    if setting.copied:
        student = HuggingFaceModel(student_from_teacher(teacher, layers=LAYERS))
    else:
        student = make_model(LAYERS, NARROW, seed)
    seconds = fit(student, setting.scale.steps, seed, distil(setting, teacher))
    nats, agreement, _ = text.evaluate(student, teacher, corpus(), "masked")
    numbers = {"nll": nats, "agreement": agreement, "cpu_seconds": seconds}
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


def taught(setting: Setting, folder: Path) -> HuggingFaceModel:
    """Return the teacher, trained now if it is not there."""
    model = make_model(TEACHER_LAYERS, WIDE, 0)
    weights = folder / "teachers" / f"{setting.teacher}.pt"
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model
    seconds = fit(model, setting.scale.teacher_steps, 0)
    nats, _, _ = text.evaluate(model, model, corpus(), "masked")
    weights.parent.mkdir(parents=True, exist_ok=True)
    record = {"nll": round(nats, DIGITS), "cpu_seconds": round(seconds, 1)}
    weights.with_suffix(".json").write_text(json.dumps(record))
    torch.save(model.state_dict(), weights)
    return model


def show(document: Document) -> str:
    """Return each kind of student beside itself alone, and beside logits alone."""
    (teacher,) = document["teachers"].values()
    parts = [f"Nats a masked character of held-out text; the teacher has {teacher['nll']:.3f}."]
    seconds = {"CPU seconds": lambda row: level(document, row, "cpu_seconds", 1)}
    for kind in ("copied", "narrow"):
        some = [row for row in rows_of(document) if row.startswith(kind)]
        for base, more in ((f"{kind}: alone", seconds), (f"{kind}: logits", None)):
            shown = some if more else some[1:]
            beside = compare(document, base, ("nll",), more, shown)
            parts.append(f"Beside {base.replace(': ', ', ')}:\n\n{beside}")
    return "\n\n".join(parts)


def draw(document: Document) -> Figure:
    """Draw each row's nats, and the teacher's."""
    figure, (axes,) = panels(1, width=9.0)
    (teacher,) = document["teachers"].values()
    for place, row in enumerate(rows_of(document)):
        plain = row.endswith(("alone", ": logits"))
        colour = ALONE if row.endswith("alone") else OTHER if plain else DISTILLED
        found = values(document, row, "nll")
        axes.plot([place] * len(found), found, "o", color=colour, alpha=0.6)
    axes.axhline(teacher["nll"], color=GREY, linestyle="--", label="teacher")
    names = [row.replace(": ", "\n").replace(", ", ",\n") for row in rows_of(document)]
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_title("Nats a masked character (lower is better)", fontsize=10)
    axes.legend(frameon=False)
    return figure


EXPERIMENT = Experiment(
    "feature_text",
    rows,
    show,
    draw,
    run=run,
    seeds=3,
    scales=(Scale(), Scale(4, 6)),
    packages=("mosaicml", "torch", "transformers"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
