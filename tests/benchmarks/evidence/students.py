"""What the experiments on students made from their teachers have in common."""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from composer.models import HuggingFaceModel
from matplotlib.figure import Figure
from torch import Tensor

from composer_distill import Distillation, KLDivergence
from composer_distill.students import width
from composer_distill.students.activations import Importance
from tests.benchmarks.evidence import plots
from tests.benchmarks.evidence.experiment import Document
from tests.benchmarks.evidence.runs import DIGITS, today
from tests.benchmarks.evidence.tables import difference, level, rows_of, table, values

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))

import causal_language_model as text  # noqa: E402

__all__ = [
    "by_logits",
    "corpus",
    "levels",
    "measured",
    "picture",
    "scored_by_chance",
    "taught",
    "text",
]
UNTRAINED, ALONE, DISTILLED = LEARNT = ("untrained", "alone", "distilled")
# Of each the panel, the colour, the marker, and how far above its line it stands
_STYLES = {
    UNTRAINED: (0, plots.OTHER, "D", 0.0),
    ALONE: (1, plots.ALONE, "s", 0.15),
    DISTILLED: (1, plots.DISTILLED, "o", -0.15),
}


@cache
def corpus() -> tuple[Tensor, Tensor, int]:
    """Return the text to train on, the held-out one and the number of characters, read once."""
    return text.load_text()


def by_logits(teacher: HuggingFaceModel) -> Distillation:
    """Return the algorithm of a student that learns from its teacher's logits alone."""
    return Distillation(teacher, KLDivergence(temperature=1.0), 1.0, 0.0, telemetry=False)


def measured(nll: float, seconds: float) -> dict[str, Any]:
    """Return what a run keeps: when, how good and how long."""
    return {"date": today(), "nll": round(nll, DIGITS), "cpu_seconds": round(seconds, DIGITS)}


def taught(
    model: HuggingFaceModel,
    weights: Path,
    train: Callable[[HuggingFaceModel], float],
    nats: Callable[[HuggingFaceModel], float],
    more: Callable[[HuggingFaceModel], dict[str, Any]] = lambda model: {},
) -> HuggingFaceModel:
    """Return a teacher, trained now if its weights are not there.

    Args:
        model: It, untrained.
        weights: Where its weights are kept; its record lies beside them.
        train: Trains it, and returns the CPU seconds that it took.
        nats: Measures it.
        more: Returns what else its record holds.
    """
    if weights.exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        return model
    seconds = train(model)
    record = {"nll": round(nats(model), DIGITS), "cpu_seconds": round(seconds, 1), **more(model)}
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.with_suffix(".json").write_text(json.dumps(record))
    torch.save(model.state_dict(), weights)
    return model


@contextmanager
def scored_by_chance(seed: int) -> Iterator[None]:
    """Have uniform draws in the place of measured activations, for the time of a context."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(model: Any, family: Any, batches: Any) -> Importance:
        config = model.config
        layers = range(config.num_hidden_layers)

        def draw(count: int) -> torch.Tensor:
            return torch.rand(count, generator=generator, dtype=torch.float64)

        return Importance(
            draw(config.hidden_size),
            [draw(config.intermediate_size) for _ in layers],
            [draw(config.num_attention_heads) for _ in layers],
        )

    with mock.patch.object(width, "measured", drawn):
        yield


def students_of(document: Document) -> list[str]:
    """Return the students of a document whose rows are ``"STUDENT: untrained"`` and so on."""
    return list(dict.fromkeys(name.rpartition(":")[0] for name in rows_of(document)))


def levels(document: Document) -> str:
    """Return the table of students' nats: untrained, alone, distilled, and what a teacher adds."""
    there, lines = rows_of(document), []
    for student in students_of(document):
        names = [f"{student}: {learns}" for learns in LEARNT]
        cells = [level(document, name, "nll") if name in there else "" for name in names]
        _, alone, distilled = names
        added = difference(document, alone, distilled, "nll") if distilled in there else ""
        lines.append([student, *cells, added])
    return table(["student", *LEARNT, "distilled - alone, better on"], lines)


def picture(document: Document, more: Mapping[str, Sequence[float]]) -> Figure:
    """Draw students' nats, untrained and trained; trained random weights beside the untrained.

    Args:
        document: Whose rows are called ``"STUDENT: untrained"`` and so on.
        more: Nats of further untrained ones, by students.
    """
    students = students_of(document)
    figure, axes = plots.panels(2, width=5.4, height=1.6 + 0.26 * len(students))
    (teacher,) = document["teachers"].values()
    for place, student in enumerate(reversed(students)):
        bars = more.get(student, ())
        axes[0].plot(bars, [place] * len(bars), "|", color=plots.GREY, alpha=0.6, markersize=9)
        copied = f"{student}: {UNTRAINED}" in rows_of(document)
        for learns, (panel, colour, marker, above) in _STYLES.items():
            if (name := f"{student}: {learns}") in rows_of(document):
                found = values(document, name, "nll")
                height = [place + above] * len(found)
                axes[panel * copied].plot(found, height, marker, color=colour, alpha=0.6)
    for each in axes:
        each.axvline(teacher["nll"], color=plots.GREY, linestyle="--", linewidth=1.2)
        each.set_yticks(range(len(students)), list(reversed(students)), fontsize=8)
        each.locator_params(axis="x", nbins=6)
        each.tick_params(axis="x", labelsize=8)
        each.set_ylim(-0.6, len(students) - 0.4)
        each.set_xlabel("nats a character, lower is better (dashed: the teacher)", fontsize=9)
    bars = ", bars: more by chance" * bool(more)
    axes[0].set_title(f"Diamonds: untrained{bars}; trained random weights", fontsize=9)
    axes[1].set_title("Trained (squares: alone, dots: distilled)", fontsize=9)
    return figure
