"""Does it help that a student writes what it learns on? A character model that drifts off its data.

The corpus is ``pydoc_data.topics``, whole topics held out. A student is trained on it alone; from
there it goes on in several ways, all with the same teacher, prompts, batches and learning rate, by
the real ``Trainer``, ``Distillation`` and ``OnPolicy``. Each row is measured after equal steps and
after equal CPU time, which is that of the row of the same loss that writes every batch. Run from
the repository's root::

    python -m tests.benchmarks.on_policy --output results/on_policy

Results are added to ``on_policy.json`` after every row, so that a run that was stopped goes on
where it was; ``--table`` prints the table of what is there. CPU time is the process's, on one
thread.
"""

import argparse
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import composer
import torch
import transformers
from composer import Trainer
from composer.core import Callback, State
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence, OnPolicy
from composer_distill.losses import JensenShannonDivergence, ReverseKLDivergence
from tests.benchmarks.text import Corpus

LENGTH, PROMPT = 64, 16
LOSSES: dict[str, Any] = {
    "forward KL": KLDivergence(1.0),
    "JSD 0.5": JensenShannonDivergence(beta=0.5),
    "reverse KL": ReverseKLDivergence(1.0),
}


@dataclass(frozen=True)
class Settings:
    """How long and how large."""

    teacher_steps: int = 1200
    warm_steps: int = 400
    steps: int = 150
    batch: int = 16
    warm_batch: int = 32
    rate: float = 1e-3
    prompts: int = 128
    texts: int = 0  # those that students go on with, again and again; 0 for ever new ones
    student_width: int = 48
    teacher_width: int = 128


@dataclass(frozen=True)
class Row:
    """One way to go on: ``None`` for a loss is the student alone, on the data."""

    name: str
    loss: str | None
    fraction: float = 0.0
    buffer: int = 1


# The row that writes every batch comes first of its loss: the others get the time that it takes.
ROWS = [
    *(
        Row(f"{kind}, {loss}", loss, fraction)
        for loss in LOSSES
        for kind, fraction in (("on-policy", 1.0), ("mixed", 0.5), ("off-policy", 0.0))
    ),
    Row("on-policy, 4 batches at once, reverse KL", "reverse KL", 1.0, 4),
    Row("alone", None),
]


def character_model(corpus: Corpus, layers: int, width: int, seed: int) -> HuggingFaceModel:
    """Return a GPT-2 of random weights; nothing ends its text."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=corpus.vocab_size, n_positions=LENGTH, n_embd=width, n_layer=layers, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
        loss_type="ForCausalLM",
    )  # fmt: skip
    return HuggingFaceModel(transformers.GPT2LMHeadModel(config))


def windows(text: Tensor, n: int, seed: int, prompt: int) -> list[dict[str, Tensor]]:
    """Return windows at random places, of which the first ``prompt`` characters are given."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - LENGTH, (n,), generator=generator)
    ids = text[starts[:, None] + torch.arange(LENGTH)]
    labels = ids.masked_fill(torch.arange(LENGTH) < prompt, -100)
    mask = torch.ones_like(ids)
    return [
        {"input_ids": i, "attention_mask": m, "labels": t}
        for i, m, t in zip(ids, mask, labels, strict=True)
    ]


class Watch(Callback):
    """Looks at the student after some steps, and after some CPU time, where it stops the run."""

    def __init__(self, steps: int, seconds: float, look: Any) -> None:
        self.steps, self.seconds, self.look = steps, seconds, look
        self.after_steps: dict[str, float] = {}
        self.after_time: dict[str, float] = {}
        self._start, self._looking = 0.0, 0.0

    def fit_start(self, state: State, logger: Any) -> None:
        self._start = time.process_time()

    def spent(self) -> float:
        return time.process_time() - self._start - self._looking

    def measured(self, state: State) -> dict[str, float]:
        spent, start = self.spent(), time.process_time()
        found = {"steps": int(state.timestamp.batch), "cpu_seconds": spent, **self.look()}
        self._looking += time.process_time() - start
        return found

    def batch_end(self, state: State, logger: Any) -> None:
        if int(state.timestamp.batch) == self.steps:
            self.after_steps = self.measured(state)
        if int(state.timestamp.batch) >= self.steps and self.spent() >= self.seconds:
            self.after_time = self.measured(state)
            state.stop_training()


def train(
    model: HuggingFaceModel,
    data: list[dict[str, Tensor]],
    batch: int,
    rate: float,
    algorithms: Sequence[Any] = (),
    callbacks: Sequence[Any] = (),
    duration: str = "1ep",
) -> None:
    """Train a model in place, at a constant learning rate, on windows in their order."""
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(data, batch_size=batch),  # pyright: ignore[reportArgumentType]
        max_duration=duration,
        optimizers=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01),
        algorithms=list(algorithms),
        callbacks=list(callbacks),
        progress_bar=False,
        seed=1,
    )
    trainer.fit()
    trainer.close()


@torch.no_grad()
def look_at(
    student: HuggingFaceModel, teacher: HuggingFaceModel, corpus: Corpus, n: int
) -> dict[str, float]:
    """Measure a student on text of its own and on text that was held out, in nats a character."""
    modes = student.training
    student.eval()
    held_out = windows(corpus.held_out, n, 7, PROMPT)
    ids = torch.stack([row["input_ids"] for row in held_out])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)  # the same draws for every student
        own = student.model.generate(
            input_ids=ids[:, :PROMPT], attention_mask=torch.ones_like(ids[:, :PROMPT]),
            max_new_tokens=LENGTH - PROMPT, do_sample=True, top_k=0, pad_token_id=0,
        )  # fmt: skip
    found = {}
    for name, text in (("own", own), ("held_out", ids)):
        log_q, log_p = (
            model.eval()({"input_ids": text}).logits[:, PROMPT - 1 : -1].log_softmax(-1)
            for model in (student, teacher)
        )
        chosen = text[:, PROMPT:, None]
        by_teacher, by_student = (-x.gather(-1, chosen)[..., 0] for x in (log_p, log_q))
        if name == "own":
            found["own_nats"] = float(by_teacher.mean())
            found["own_late"] = float(by_teacher[:, -12:].mean())
            found["own_entropy"] = float(-(log_q.exp() * log_q).sum(-1).mean())
            found["own_kl"] = float((log_q.exp() * (log_q - log_p)).sum(-1).mean())
        else:
            found["held_out_nats"] = float(by_student.mean())
            found["held_out_kl"] = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    student.train(modes)
    return found


def go_on(
    row: Row,
    seed: int,
    start: dict[str, Tensor],
    corpus: Corpus,
    teacher: HuggingFaceModel,
    settings: Settings,
    seconds: float,
) -> dict[str, Any]:
    """Train one row and return what was measured."""
    student = character_model(corpus, 2, settings.student_width, seed)
    student.load_state_dict(start)
    watch = Watch(
        settings.steps, seconds, lambda: look_at(student, teacher, corpus, settings.prompts)
    )
    algorithms: list[Any] = []
    if row.fraction:
        new = LENGTH - PROMPT
        algorithms.append(OnPolicy(row.fraction, new, seed=seed, buffer_batches=row.buffer))
    if row.loss is not None:
        term = Distillation(teacher, LOSSES[row.loss], 1.0, 0.0, telemetry=False)
        algorithms.append(term)
    data = windows(corpus.train, settings.texts or 1000 * settings.batch, 100 + seed, PROMPT)
    train(student, data, settings.batch, settings.rate, algorithms, [watch], "10000ba")
    return {
        "row": row.name,
        "seed": seed,
        "after_steps": watch.after_steps,
        "after_time": watch.after_time,
    }


def prepared(
    path: Path, model: HuggingFaceModel, corpus: Corpus, steps: int, batch: int, seed: int
) -> HuggingFaceModel:
    """Return a model trained on the data alone, from a file if it is there."""
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(model, windows(corpus.train, steps * batch, seed, 0), batch, 3e-3)
        torch.save(model.state_dict(), path)
    return model


def run(folder: Path, settings: Settings, seeds: int, rows: Sequence[Row] = tuple(ROWS)) -> None:
    """Run what is not in the folder yet."""
    path, corpus = folder / "on_policy.json", Corpus()
    folder.mkdir(parents=True, exist_ok=True)
    saved: dict[str, Any] = {"settings": asdict(settings), "machine": machine(), "runs": []}
    if path.exists():
        saved = json.loads(path.read_text("utf-8"))
        if saved["settings"] != asdict(settings):
            raise SystemExit(f"{path} holds results of other settings: choose another --output.")
    big = character_model(corpus, 3, settings.teacher_width, 1000)
    teacher = prepared(folder / "teacher.pt", big, corpus, settings.teacher_steps, 32, 1000)
    saved["teacher"] = look_at(teacher, teacher, corpus, settings.prompts)
    for seed in range(1, seeds + 1):
        first = character_model(corpus, 2, settings.student_width, seed)
        warm = settings.warm_steps, settings.warm_batch, seed
        start = prepared(folder / f"student-{seed}.pt", first, corpus, *warm)
        saved.setdefault("starts", {})[str(seed)] = look_at(
            start, teacher, corpus, settings.prompts
        )
        seconds: dict[str | None, float] = {}
        for row in rows:
            found = next(
                (r for r in saved["runs"] if (r["row"], r["seed"]) == (row.name, seed)), None
            )
            if found is None:
                budget = seconds.get(row.loss, max(seconds.values(), default=0.0))
                weights = start.state_dict()
                found = go_on(row, seed, weights, corpus, teacher, settings, budget)
                saved["runs"].append(found)
                path.write_text(json.dumps(saved, indent=1) + "\n", "utf-8")
                print(json.dumps(found), flush=True)
            seconds.setdefault(row.loss, found["after_steps"]["cpu_seconds"])


def machine() -> dict[str, str]:
    """Return what the numbers depend on beside the settings."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread, shared with other work",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, mosaicml "
        f"{composer.__version__}, transformers {transformers.__version__}",
    }


def shown(saved: dict[str, Any]) -> str:
    """Return what the page shows of one set of results."""
    told, teacher = saved["machine"], saved["teacher"]
    starts = list(saved["starts"].values())
    return "\n\n".join(
        (
            f"Measured on {told['date']}; {told['versions']}; {told['machine']}. "
            f"The teacher's loss on its own text: {teacher['own_nats']:.3f}; "
            "on the text of students before they go on: "
            f"{spread([start['own_nats'] for start in starts])}, on its last 12 characters "
            f"{spread([start['own_late'] for start in starts])}.",
            "Equal steps:",
            table(saved, "after_steps"),
            "Equal time:",
            table(saved, "after_time"),
        )
    )


def published(folders: Sequence[Path], seeds: int) -> dict[str, Any]:
    """Return the results of some folders, by their names, rounded."""
    found = {}
    for folder in folders:
        saved = json.loads((folder / "on_policy.json").read_text("utf-8"))
        saved["runs"] = [run for run in saved["runs"] if run["seed"] <= seeds]
        saved["starts"] = {s: v for s, v in saved["starts"].items() if int(s) <= seeds}
        found[folder.name] = json.loads(
            json.dumps(saved), parse_float=lambda text: round(float(text), 4)
        )
    return found


def table(saved: dict[str, Any], moment: str) -> str:
    """Return the Markdown table of one moment, each row with its difference to off-policy."""
    lines = [
        "| student | steps | CPU seconds | teacher's loss on the student's text "
        "| paired difference to off-policy | its last 12 characters | KL(student, teacher) there "
        "| student's entropy there | loss on held-out text |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_row: dict[str, dict[int, dict[str, float]]] = {}
    for found in saved["runs"]:
        by_row.setdefault(found["row"], {})[found["seed"]] = found[moment]
    for name, runs in by_row.items():
        base = by_row.get(f"off-policy, {name.rpartition(', ')[2]}", {})
        pairs = [v["own_nats"] - base[s]["own_nats"] for s, v in runs.items() if s in base]
        own = name.startswith("off-policy") or not pairs
        won = f"better in {sum(p < 0 for p in pairs)} of {len(pairs)}"
        cells = [
            name,
            f"{mean(v['steps'] for v in runs.values()):.0f}",
            f"{mean(v['cpu_seconds'] for v in runs.values()):.0f}",
            spread([v["own_nats"] for v in runs.values()]),
            "" if own else f"{spread(pairs, sign=True)}, {won}",
            *(
                spread([v[measure] for v in runs.values()])
                for measure in ("own_late", "own_kl", "own_entropy", "held_out_nats")
            ),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def spread(values: list[float], *, sign: bool = False) -> str:
    """Return mean and standard deviation."""
    deviation = stdev(values) if len(values) > 1 else float("nan")
    return f"{mean(values):{'+' if sign else ''}.3f} ± {deviation:.3f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, or print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--losses", nargs="*", choices=tuple(LOSSES), help="those rows alone")
    parser.add_argument("--table", action="store_true", help="print the tables of what is there")
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = parser.parse_args(arguments)
    if given.table:
        saved = json.loads((given.output / "on_policy.json").read_text("utf-8"))
        print(table(saved, "after_steps"), table(saved, "after_time"), sep="\n\n")
        return
    for noisy in ("composer", "transformers"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = [row for row in ROWS if given.losses is None or row.loss in given.losses]
    settings = Settings(**{name: getattr(given, name) for name in asdict(Settings())})
    run(given.output, settings, given.seeds, rows)


if __name__ == "__main__":
    main()
