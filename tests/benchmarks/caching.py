"""Students from cached answers on real text: their steps' time, bytes a token, and quality.

The corpus is CPython's own documentation, ``pydoc_data.topics``, by words; whole topics are held
out. Students train through the real ``Trainer`` for equal steps on the same batches, from the live
teacher and from caches of its answers. Run from the repository's root::

    python -m tests.benchmarks.caching --output docs/evidence/caching.json

Time is the process's CPU time on one thread.
"""

import argparse
import collections
import json
import platform
import pydoc_data.topics
import random
import re
import statistics
import tempfile
import time
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import composer
import torch
from composer import Trainer
from composer.core import Callback
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher

WORDS, LENGTH, BATCH, STEPS, TEACHER_STEPS = 2000, 32, 16, 200, 700
SEEDS = (0, 1, 2)
KINDS: dict[str, dict[str, Any]] = {
    "top-k 8": {"top_k": 8},
    "top-k 64": {"top_k": 64},
    "12 draws": {"samples": 12},
    "50 draws": {"samples": 50},
}


def corpus() -> tuple[Tensor, Tensor]:
    """Return training and held-out texts, ``(N, LENGTH + 1)`` numbers of words; 0 for rare ones."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    random.Random(0).shuffle(topics)
    held_out = len(topics) // 8
    split = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in topics]
    counted = collections.Counter(word for text in split[held_out:] for word in text)
    known = {word: 1 + i for i, (word, _) in enumerate(counted.most_common(WORDS - 1))}

    def rows(texts: list[list[str]]) -> Tensor:
        ids = torch.tensor([known.get(word, 0) for text in texts for word in text])
        return ids[: len(ids) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)

    return rows(split[held_out:]), rows(split[:held_out])


class WordModel(ComposerModel):
    """A recurrent network that predicts the next word."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(WORDS, width)
        self.layers = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, WORDS)

    def forward(self, batch: Any) -> Tensor:
        return self.head(self.layers(self.embedding(batch[0]))[0])

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(outputs.reshape(-1, WORDS), batch[1].reshape(-1))


class StepTime(Callback):
    """Notes the CPU time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def batch_start(self, state: Any, logger: Any) -> None:
        self._began = time.process_time()

    def batch_end(self, state: Any, logger: Any) -> None:
        self.seconds.append(time.process_time() - self._began)


def loader(texts: Tensor, shuffle: bool) -> DataLoader:
    return DataLoader(TensorDataset(texts[:, :-1], texts[:, 1:]), BATCH, shuffle=shuffle)


def train(model: WordModel, texts: Tensor, steps: int, seed: int, teacher: Any = None) -> float:
    """Train a model and return the milliseconds of CPU time of a step."""
    clock = StepTime()
    term = None
    if teacher is not None:
        term = Distillation(
            teacher, KLDivergence(1.0), kd_loss_weight=1.0, org_loss_weight=0.0, telemetry=False
        )
    trainer = Trainer(
        model=model,
        train_dataloader=loader(texts, True),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=4e-3),
        algorithms=term,
        callbacks=clock,
        progress_bar=False,
        seed=seed,
        device="cpu",
    )
    trainer.fit()
    trainer.close()
    return 1000 * statistics.median(clock.seconds[10:])


@torch.no_grad()
def evaluate(model: WordModel, teacher: WordModel, texts: Tensor) -> dict[str, float]:
    """Return held-out loss, calibration error, and agreement and KL with the teacher."""
    model.eval()
    teacher.eval()
    batch = (texts[:, :-1], texts[:, 1:])
    ours, theirs = (m(batch).reshape(-1, WORDS).log_softmax(-1) for m in (model, teacher))
    labels = batch[1].reshape(-1)
    sure, chosen = ours.exp().max(-1)
    right = (chosen == labels).float()
    bins = (sure * 15).long().clamp(max=14)
    gaps = [
        (bins == i).float().mean() * (sure[bins == i].mean() - right[bins == i].mean()).abs()
        for i in range(15)
        if (bins == i).any()
    ]
    return {
        "nats": F.nll_loss(ours, labels).item(),
        "ece": float(sum(gaps)),
        "confidence": (sure.mean() - right.mean()).item(),
        "agreement": (chosen == theirs.argmax(-1)).float().mean().item(),
        "kl": (theirs.exp() * (theirs - ours)).sum(-1).mean().item(),
    }


def measure(steps: int, teacher_steps: int, seeds: tuple[int, ...]) -> dict[str, Any]:
    """Return what all runs measured."""
    torch.set_num_threads(1)
    texts, held_out = corpus()
    teacher = WordModel(160, 100)
    train(teacher, texts, teacher_steps, 100)
    runs, bytes_a_token = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in KINDS.items():
            began = time.process_time()
            place = Path(folder, name)
            manifest = cache_teacher(teacher, loader(texts, False), place, device="cpu", **options)
            bytes_a_token[name] = {
                "bytes": manifest.bytes / manifest.positions,
                "mass": manifest.mass,
                "tokens_a_second": manifest.positions / (time.process_time() - began),
            }
        for seed in seeds:
            rows: dict[str, Any] = {"alone": None, "live": Teacher(teacher)}
            rows |= {name: CachedTeacher(Path(folder, name)) for name in KINDS}
            for name, source in rows.items():
                student = WordModel(48, seed)
                step = train(student, texts, steps, seed, source)
                found = evaluate(student, teacher, held_out)
                runs.append({"row": name, "seed": seed, "step_cpu_ms": step, **found})
                print(runs[-1], flush=True)
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mosaicml": composer.__version__,
            "streaming": version("mosaicml-streaming"),
        },
        "settings": {"steps": steps, "teacher_steps": teacher_steps, "batch": BATCH},
        "texts": {"training_tokens": texts[:, 1:].numel(), "held_out": held_out[:, 1:].numel()},
        "teacher": evaluate(teacher, teacher, held_out),
        "caches": bytes_a_token,
        "runs": runs,
    }


def table(document: dict[str, Any]) -> str:
    """Return the means over seeds, and their standard deviations, as Markdown."""
    names = ("step_cpu_ms", "nats", "kl", "ece", "confidence", "agreement")
    places = {"step_cpu_ms": 1}
    lines = [
        "| student from | bytes a token | step, CPU ms | held-out nats | KL from the teacher | "
        "calibration error | confidence over accuracy | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in dict.fromkeys(run["row"] for run in document["runs"]):
        cells = []
        for name in names:
            values = [run[name] for run in document["runs"] if run["row"] == row]
            digits = places.get(name, 3)
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}")
        size = document["caches"].get(row)
        bytes_ = f"{size['bytes']:.1f}" if size else ""
        lines.append(f"| {row} | {bytes_} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS)
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    options = parser.parse_args()
    document = measure(options.steps, options.teacher_steps, tuple(range(options.seeds)))
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
