"""Students of a T5 with half of its decoder's layers, or half of both stacks.

``python -m tests.benchmarks.evidence.cut_encoder_decoder --output DIR``

The encoder reads a line of CPython's own documentation without its vowels, the decoder writes it.
"""

import pydoc_data.topics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from composer.models import HuggingFaceModel
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from composer_distill import student_from_teacher
from tests.benchmarks.evidence.experiment import Document, Experiment, OfOneTeacher, Rows, main
from tests.benchmarks.evidence.runs import DIGITS
from tests.benchmarks.evidence.students import (
    ALONE,
    DISTILLED,
    UNTRAINED,
    by_logits,
    corpus,
    levels,
    measured,
    picture,
    taught,
    text,
)
from tests.benchmarks.evidence.tables import difference, rows_of, setting_of

LAYERS, LENGTH, PADDING = 4, 32, 0
DECODER, BOTH, RANDOM = "half the decoder", "half of both", "half the decoder, random weights"
CHOICES: dict[str, dict[str, int]] = {
    DECODER: {"decoder": LAYERS // 2},
    BOTH: {"encoder": LAYERS // 2, "decoder": LAYERS // 2},
    RANDOM: {"decoder": LAYERS // 2},
}


@dataclass(frozen=True)
class Scale:
    """How long student and teacher train, and how wide they are.

    Args:
        steps: Batches of a student.
        teacher_steps: Batches of the teacher.
        width: Channels of all; the neurons are twice as many.
        judged: On how many held-out characters all are measured, if there are so many.
    """

    steps: int = 100
    teacher_steps: int = 1000
    width: int = 64
    judged: int = 100_000


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        scale: How long and how wide.
        layers: What ``student_from_teacher`` is told.
        random: Whether it has the shape alone, and random weights.
        learns: Whether it is left untrained, trains on the text alone, or on the teacher's logits.
    """

    scale: Scale
    layers: dict[str, int]
    random: bool
    learns: str

    @property
    def teacher(self) -> str:
        """What files call the teacher."""
        scale = self.scale
        return f"t5-{LAYERS}-and-{LAYERS}-width-{scale.width}-steps-{scale.teacher_steps}"


class Lines(Dataset):
    """Lines of a text: all their characters to write, all but their vowels to read."""

    def __init__(self, ids: Tensor, starts: Tensor) -> None:
        self.lines = ids[starts[:, None] + torch.arange(LENGTH)]
        stays = ~torch.isin(self.lines, vowels())
        order = (~stays).long().argsort(dim=1, stable=True)
        self.read = torch.where(stays, self.lines + 1, PADDING).gather(1, order)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        read = self.read[index]
        return {
            "input_ids": read,
            "attention_mask": (read != PADDING).long(),
            "labels": self.lines[index] + 1,  # 0 is the padding
        }


def vowels() -> Tensor:
    """Return the ids of vowels, as ``load_text`` numbers characters."""
    characters = sorted(set("".join(pydoc_data.topics.topics.values())))
    return torch.tensor([i for i, c in enumerate(characters) if c in "aeiouAEIOU"])


def row(choice: str, learns: str) -> str:
    """Return what tables call a student."""
    return f"{choice}: {learns}"


def learnt(choice: str) -> list[str]:
    """Return from what students of a choice learn."""
    return [UNTRAINED] * (choice != RANDOM) + [ALONE, DISTILLED]


def rows(seed: int, scale: Scale) -> Rows:
    """Return each choice untrained, alone and distilled; and random weights trained."""
    return {
        row(choice, learns): Setting(scale, layers, choice == RANDOM, learns)
        for choice, layers in CHOICES.items()
        for learns in learnt(choice)
    }


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    train, held_out, vocabulary = corpus()
    scale = setting.scale
    held_out = held_out[: scale.judged]
    teacher = taught(
        make_model(vocabulary, scale.width),
        folder / "teachers" / f"{setting.teacher}.pt",
        lambda model: text.fit(model, drawn(train, scale.teacher_steps, seed=0), seed=0),
        lambda model: nats(model, held_out),
        lambda model: {"of_another_line": round(nats(model, held_out, another=True), DIGITS)},
    )
    student = student_from_teacher(teacher, setting.layers)
    if setting.random:
        torch.manual_seed(seed)
        student = transformers.T5ForConditionalGeneration(student.config)
    student, seconds = HuggingFaceModel(student), 0.0
    if setting.learns != UNTRAINED:
        term = by_logits(teacher) if setting.learns == DISTILLED else None
        seconds = text.fit(student, drawn(train, scale.steps, seed), seed, term)
    return measured(nats(student, held_out), seconds)


def make_model(vocabulary: int, width: int) -> HuggingFaceModel:
    """Return the teacher, untrained."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=vocabulary + 1,
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=PADDING,
        decoder_start_token_id=PADDING,
        use_cache=False,
    )
    return HuggingFaceModel(transformers.T5ForConditionalGeneration(config))


def drawn(train: Tensor, steps: int, seed: int) -> Lines:
    """Return the lines of a run."""
    generator = torch.Generator().manual_seed(seed)
    return Lines(train, torch.randint(len(train) - LENGTH, (steps * 32,), generator=generator))


@torch.no_grad()
def nats(model: HuggingFaceModel, held_out: Tensor, another: bool = False) -> float:
    """Return the mean negative log-likelihood of a character of held-out lines.

    Args:
        model: Teacher or student.
        held_out: The text.
        another: Whether the encoder reads the line of another sample instead.
    """
    lines = Lines(held_out, torch.arange(0, len(held_out) - LENGTH, LENGTH))
    if another:
        lines.read = lines.read.roll(1, 0)
    losses = [(model.eval()(b).loss * len(b["labels"])) for b in DataLoader(lines, batch_size=128)]
    return (torch.stack(losses).sum() / len(lines)).item()


def show(document: Document) -> str:
    """Return all students, and what the teacher comes to with a line that is not its own."""
    (teacher,) = document["teachers"].values()
    steps = setting_of(document, rows_of(document)[0])["scale"]["steps"]
    copied = difference(document, row(RANDOM, ALONE), row(DECODER, ALONE), "nll")
    shorter = difference(document, row(DECODER, ALONE), row(BOTH, ALONE), "nll")
    return (
        f"Nats a character on held-out lines, after {steps} batches where trained; the teacher's "
        f"are {teacher['nll']:.3f}, and {teacher['of_another_line']:.3f} where its encoder reads "
        f"another line.\n\n{levels(document)}\n\n"
        "Paired differences of students alone, and on how many seeds they are better: the "
        f"teacher's weights against random ones {copied}; half of both stacks against half the "
        f"decoder {shorter}."
    )


def draw(document: Document) -> Figure:
    """Draw all students' nats."""
    return picture(document, {})


EXPERIMENT = Experiment(
    "cut_encoder_decoder",
    rows,
    show,
    draw,
    run=run,
    seeds=3,
    scales=(Scale(), Scale(4, 4, 32, 2000)),
    packages=("mosaicml", "torch", "transformers"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
