"""Students with half of a Llama's layers, neurons or heads, or fewer channels: which half matters.

``python -m tests.benchmarks.evidence.cut_students --output DIR``

Text, training and evaluation are those of ``docs/examples/causal_language_model.py``.
"""

import random
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import transformers
from composer.models import HuggingFaceModel
from matplotlib.figure import Figure
from torch.utils.data import DataLoader

from composer_distill import student_from_teacher
from tests.benchmarks.evidence.experiment import Document, Experiment, OfOneTeacher, Rows, main
from tests.benchmarks.evidence.runs import DIGITS
from tests.benchmarks.evidence.students import (
    ALONE,
    DISTILLED,
    LEARNT,
    UNTRAINED,
    by_logits,
    corpus,
    levels,
    measured,
    picture,
    scored_by_chance,
    taught,
    text,
)
from tests.benchmarks.evidence.tables import difference, rows_of, runs_of, setting_of, table, values

LAYERS, HEADS = 6, 4
CUTS = ("layers", "neurons", "heads", "channels")
EVEN, IMPORTANCE, CHANCE, RANDOM = "even", "importance", "chance", "random weights"


@dataclass(frozen=True)
class Scale:
    """How long student and teacher train, and how wide the teacher is.

    Args:
        steps: Batches of a student.
        teacher_steps: Batches of the teacher.
        width: The teacher's channels; it has twice as many neurons.
        batches: On how many importance is measured.
        draws: How many students by chance are looked at untrained, for each cut.
        judged: On how many held-out characters all are measured, if there are so many.
    """

    steps: int = 100
    teacher_steps: int = 800
    width: int = 64
    batches: int = 8
    draws: int = 20
    judged: int = 100_000


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        scale: How long and how wide.
        cut: What there is less of.
        choice: By what those that stay are chosen, or ``"random weights"`` of the same shape.
        learns: Whether it is left untrained, trains on the text alone, or on the teacher's logits.
    """

    scale: Scale
    cut: str
    choice: str
    learns: str

    @property
    def teacher(self) -> str:
        """What files call the teacher."""
        return f"llama-{LAYERS}-layers-width-{self.scale.width}-steps-{self.scale.teacher_steps}"


def row(cut: str, choice: str, learns: str) -> str:
    """Return what tables call a student."""
    return f"{cut}, {choice}: {learns}"


def choices(cut: str) -> list[str]:
    """Return by what those that stay can be chosen."""
    return [EVEN] * (cut == "layers") + [IMPORTANCE, CHANCE]


def rows(seed: int, scale: Scale) -> Rows:
    """Return each cut by each choice, untrained, alone and distilled; and random weights alone."""
    found = {}
    for cut in CUTS:
        for choice in choices(cut):
            for learns in LEARNT:
                found[row(cut, choice, learns)] = Setting(scale, cut, choice, learns)
        found[row(cut, RANDOM, ALONE)] = Setting(scale, cut, RANDOM, ALONE)
    return found


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    scale = setting.scale
    train, held_out, vocabulary = corpus()
    held_out = held_out[: scale.judged]
    teacher = taught(
        make_model(vocabulary, scale.width),
        folder / "teachers" / f"{setting.teacher}.pt",
        lambda model: text.train(model, train, scale.teacher_steps, seed=0),
        lambda model: text.nats(model, held_out),
        lambda model: {"by_chance": by_chance(model, scale, held_out)},
    )
    student = made(teacher, setting, seed, asked(train, scale.batches, seed))
    kept = {"kept": origins(student, teacher)} if setting.cut == "layers" else {}
    if setting.choice == RANDOM:
        kept = {}
        torch.manual_seed(seed)
        student = HuggingFaceModel(transformers.LlamaForCausalLM(student.model.config))
    seconds = 0.0
    if setting.learns != UNTRAINED:
        term = by_logits(teacher) if setting.learns == DISTILLED else None
        seconds = text.train(student, train, scale.steps, seed, term)
    return {**measured(text.nats(student, held_out), seconds), **kept}


def make_model(vocabulary: int, width: int) -> HuggingFaceModel:
    """Return the teacher, untrained."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=text.CONTEXT + 1,
        bos_token_id=0,
        eos_token_id=0,
    )
    return HuggingFaceModel(transformers.LlamaForCausalLM(config))


def asked(train: torch.Tensor, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Return batches of the text, on which importance is measured."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(train) - text.CONTEXT, (count * 32,), generator=generator)
    return list(DataLoader(text.Windows(train, starts), batch_size=32))


def made(
    teacher: HuggingFaceModel, setting: Setting, seed: int, batches: list[dict[str, torch.Tensor]]
) -> HuggingFaceModel:
    """Return a student as it is before training."""
    widths = widths_of(setting.cut, setting.scale.width)
    if not widths:
        number = LAYERS // 2
        if setting.choice == IMPORTANCE:
            return HuggingFaceModel(
                student_from_teacher(teacher, "importance", n_layers=number, batches=batches)
            )
        drawn = sorted(random.Random(seed).sample(range(LAYERS), number))
        layers = drawn if setting.choice == CHANCE else number
        return HuggingFaceModel(student_from_teacher(teacher, layers))
    if setting.choice == CHANCE:
        with scored_by_chance(seed):
            return HuggingFaceModel(student_from_teacher(teacher, batches=batches, **widths))
    return HuggingFaceModel(student_from_teacher(teacher, batches=batches, **widths))


def widths_of(cut: str, width: int) -> dict[str, int]:
    """Return how many stay, as ``student_from_teacher`` is told; nothing for layers."""
    return {
        "layers": {},
        "neurons": {"intermediate": width},
        "heads": {"heads": HEADS // 2},
        "channels": {"hidden": width * 3 // 4},
    }[cut]


def by_chance(
    teacher: HuggingFaceModel, scale: Scale, held_out: torch.Tensor
) -> dict[str, list[float]]:
    """Return the nats of untrained students by chance: of layers all choices there are."""
    found: dict[str, list[float]] = {}
    for cut in CUTS:
        widths = widths_of(cut, scale.width)
        chosen = islice(combinations(range(LAYERS), LAYERS // 2), scale.draws)
        students = [] if widths else [student_from_teacher(teacher, each) for each in chosen]
        for seed in range(1000, 1000 + scale.draws if widths else 1000):
            with scored_by_chance(seed):
                students.append(student_from_teacher(teacher, batches=[], **widths))
        nats = [text.nats(HuggingFaceModel(student), held_out) for student in students]
        found[cut] = [round(value, DIGITS) for value in nats]
    return found


def origins(student: HuggingFaceModel, teacher: HuggingFaceModel) -> list[int]:
    """Return which of the teacher's layers a student's are."""
    theirs = [layer.mlp.up_proj.weight for layer in teacher.model.model.layers]
    ours = [layer.mlp.up_proj.weight for layer in student.model.model.layers]
    return [next(i for i, t in enumerate(theirs) if torch.equal(own, t)) for own in ours]


def show(document: Document) -> str:
    """Return all students, importance beside chance, and more untrained students by chance."""
    (teacher,) = document["teachers"].values()
    steps = setting_of(document, rows_of(document)[0])["scale"]["steps"]
    kept = {
        tuple(found["kept"]) for found in runs_of(document, row("layers", IMPORTANCE, UNTRAINED))
    }
    return "\n\n".join(
        [
            f"Nats a character on held-out text, after {steps} batches where trained; the "
            f"teacher's are {teacher['nll']:.3f}.",
            levels(document),
            "Differences from a choice by chance, paired by seed, and on how many it is better:",
            _beside_chance(document),
            "Untrained students of the same shape, by chance (of layers all choices there are), "
            "and how many of these are better than importance's mean over seeds:",
            _ranks(document, teacher["by_chance"]),
            f"Importance kept the layers {_listed(kept)}; even distances keep 0, 3, 5.",
        ]
    )


def _listed(kept: set[tuple[int, ...]]) -> str:
    return " or ".join(", ".join(map(str, each)) for each in sorted(kept))


def _beside_chance(document: Document) -> str:
    lines = []
    for cut in CUTS:
        for choice in choices(cut)[:-1]:
            pairs = [(row(cut, CHANCE, how), row(cut, choice, how)) for how in LEARNT]
            cells = [difference(document, *pair, "nll") for pair in pairs]
            lines.append([f"{cut}, {choice}", *cells])
    return table(["student", *LEARNT], lines)


def _ranks(document: Document, by_chance: dict[str, list[float]]) -> str:
    lines = []
    for cut, found in by_chance.items():
        own = mean(values(document, row(cut, IMPORTANCE, UNTRAINED), "nll"))
        cells = [f"{value:.3f}" for value in (own, min(found), median(found), max(found))]
        lines.append([cut, *cells, f"{sum(nats < own for nats in found)} of {len(found)}"])
    return table(["cut", "importance", "best", "median", "worst", "better than importance"], lines)


def draw(document: Document) -> Figure:
    """Draw all students' nats, and those of more by chance."""
    (teacher,) = document["teachers"].values()
    by_chance = {f"{cut}, {CHANCE}": found for cut, found in teacher["by_chance"].items()}
    return picture(document, by_chance)


EXPERIMENT = Experiment(
    "cut_students",
    rows,
    show,
    draw,
    run=run,
    scales=(Scale(), Scale(4, 4, 32, 1, 2, 2000)),
    packages=("mosaicml", "torch", "transformers"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
