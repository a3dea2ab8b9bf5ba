"""Distillation on real text: CPython's own documentation, character by character.

The corpus is ``pydoc_data.topics``, which every Python carries: whole topics are held out. A small
student trains alone and from a teacher nine times its size, through the real ``Trainer`` and
``Distillation``, on the same batches from the same initial weights for each seed. Rows where
distillation loses are part of the table. Run from the repository's root::

    python -m tests.benchmarks.text --output results/text

Time is the process's CPU time on one thread, so that a busy machine does not change it. Results
are added to ``results.json`` after every run, so that an interrupted benchmark goes on
where it stopped; ``report`` writes ``results.md`` and ``results.png`` from them.
"""

import argparse
import json
import logging
import platform
import pydoc_data.topics
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import composer
import torch
import transformers
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingWithWarmupScheduler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from composer_distill import Distillation, KLDivergence, loss_positions
from composer_distill.losses import ReverseKLDivergence, TopKKL
from composer_distill.terms.positions import MaskFn

Loss = Callable[[Tensor, Tensor], Tensor]

CONTEXT = 64
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Settings:
    """How long and how large."""

    steps: int = 600
    limited_steps: int = 1200
    limited_characters: int = 60_000
    teacher_steps: int = 1500
    batch: int = 32
    teacher_batch: int = 32
    student_layers: int = 2
    student_width: int = 48
    teacher_layers: int = 3
    teacher_width: int = 128


@dataclass(frozen=True)
class Row:
    """One way to train the student."""

    name: str
    group: str  # rows of one group are compared with its first
    steps: int
    loss: Loss | None = None
    kd_weight: float = 1.0
    end: float = 1.0
    mask_fn: MaskFn | None = None


@dataclass(frozen=True)
class Result:
    """What one run measured on the held-out topics."""

    task: str
    group: str
    row: str
    seed: int
    steps: int
    seconds: float
    nats: float
    agreement: float
    kl: float


class Corpus:
    """The documentation as ids, whole topics apart for validation."""

    def __init__(self) -> None:
        topics = sorted(pydoc_data.topics.topics.items())
        random.Random(0).shuffle(topics)
        total = sum(len(text) for _, text in topics)
        held_out, train = [], []
        for _, text in topics:
            if sum(map(len, held_out)) < 0.09 * total:
                held_out.append(text)
            else:
                train.append(text)
        self.characters = sorted(set("".join([*held_out, *train])))
        ids = {character: index for index, character in enumerate(self.characters)}
        self.mask_id = len(ids)
        self.vocab_size = len(ids) + 1
        self.train = torch.tensor([ids[c] for c in "".join(train)])
        self.held_out = torch.tensor([ids[c] for c in "".join(held_out)])


class Windows(Dataset):
    """Windows of a text at given starts, as a causal or a masked language model reads them."""

    def __init__(self, text: Tensor, starts: Tensor, task: str, mask_id: int, seed: int) -> None:
        length = CONTEXT + 1 if task == "causal" else CONTEXT
        self.inputs = text[starts[:, None] + torch.arange(length)]
        self.labels = self.inputs
        if task == "masked":
            generator = torch.Generator().manual_seed(seed)
            masked = torch.rand(self.inputs.shape, generator=generator) < MASKED_SHARE
            self.labels = self.inputs.masked_fill(~masked, -100)
            self.inputs = self.inputs.masked_fill(masked, mask_id)
        self.attention = torch.ones_like(self.inputs)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {
            "input_ids": self.inputs[index],
            "attention_mask": self.attention[index],
            "labels": self.labels[index],
        }


def causal_rows(settings: Settings) -> list[Row]:
    """Return the rows of the causal benchmark; the first of each group is its baseline."""
    kl, s, limited = KLDivergence(temperature=1.0), settings.steps, settings.limited_steps
    return [
        Row("alone", "limited", limited),
        Row("distilled, T=1", "limited", limited, kl),
        Row("alone, twice the steps", "limited", 2 * limited),
        Row("alone", "plentiful", s),
        Row("distilled, T=1", "plentiful", s, kl),
        Row("alone, twice the steps", "plentiful", 2 * s),
        Row("distilled, T=2", "plentiful", s, KLDivergence(temperature=2.0)),
        Row("reverse KL", "plentiful", s, ReverseKLDivergence(temperature=1.0)),
        Row("top-3 renormalised", "plentiful", s, TopKKL(3, tail="renormalise")),
        Row("top-3 and a tail", "plentiful", s, TopKKL(3, tail="bucket")),
        Row("distilled, half and half", "plentiful", s, kl, kd_weight=0.5),
    ]


def masked_rows(settings: Settings) -> list[Row]:
    """Return the rows of the masked benchmark: the same distillation, stopped at three moments."""
    kl, s = KLDivergence(temperature=1.0), settings.limited_steps
    return [
        Row("alone", "end_dur", s),
        *(Row(f"distilled, end_dur={end}", "end_dur", s, kl, 0.9, end) for end in (0.25, 0.5, 1.0)),
        Row("distilled, masked positions only", "end_dur", s, kl, 0.9, mask_fn=loss_positions),
    ]


def make_model(task: str, corpus: Corpus, layers: int, width: int, seed: int) -> HuggingFaceModel:
    """Return a model of random weights: a GPT-2, or a bidirectional encoder."""
    torch.manual_seed(seed)
    if task == "causal":
        config = transformers.GPT2Config(
            vocab_size=corpus.vocab_size, n_positions=CONTEXT + 1, n_embd=width, n_layer=layers,
            n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
        )  # fmt: skip
        return HuggingFaceModel(transformers.GPT2LMHeadModel(config))
    # Rotary positions: with learned ones a model this small stays at the frequencies of characters
    config = transformers.ModernBertConfig(
        vocab_size=corpus.vocab_size + 1, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=4, intermediate_size=2 * width, max_position_embeddings=CONTEXT,
        global_attn_every_n_layers=1, global_rope_theta=100.0, reference_compile=False,
        attn_implementation="eager", pad_token_id=corpus.vocab_size,
        bos_token_id=0, eos_token_id=0, cls_token_id=0, sep_token_id=0,
    )  # fmt: skip
    return HuggingFaceModel(transformers.ModernBertForMaskedLM(config))


def train(
    model: HuggingFaceModel, text: Tensor, task: str, mask_id: int, steps: int, batch: int,
    rate: float, seed: int, distillation: Distillation | None = None,
) -> float:  # fmt: skip
    """Train a model in place through the Trainer and return the CPU seconds it took."""
    starts = torch.randint(
        len(text) - CONTEXT, (steps * batch,), generator=torch.Generator().manual_seed(seed)
    )
    loader = DataLoader(Windows(text, starts, task, mask_id, seed), batch_size=batch)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01),
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup="50ba", alpha_f=0.1),
        algorithms=distillation,
        progress_bar=False,
        seed=seed,
    )
    started = time.process_time()
    trainer.fit()
    seconds = time.process_time() - started
    trainer.close()
    return seconds


@torch.no_grad()
def evaluate(
    student: HuggingFaceModel, teacher: HuggingFaceModel, corpus: Corpus, task: str
) -> tuple[float, float, float]:
    """Return nats a predicted character, agreement with and KL from the teacher."""
    starts = torch.arange(0, len(corpus.held_out) - CONTEXT, CONTEXT)
    loader = DataLoader(Windows(corpus.held_out, starts, task, corpus.mask_id, 0), batch_size=128)
    sums, count = torch.zeros(3), 0
    for batch in loader:
        labels = batch.pop("labels")
        log_q, log_p = (model.eval()(batch).logits.log_softmax(-1) for model in (student, teacher))
        if task == "causal":
            labels, log_q, log_p = labels[:, 1:], log_q[:, :-1], log_p[:, :-1]
        kept = labels != -100
        labels, log_q, log_p = labels[kept], log_q[kept], log_p[kept]
        nats = -log_q.gather(-1, labels[:, None]).sum()
        agree = (log_q.argmax(-1) == log_p.argmax(-1)).float().sum()
        kl = (log_p.exp() * (log_p - log_q)).sum()
        sums += torch.stack([nats, agree, kl])
        count += len(labels)
    nats, agreement, kl = (sums / count).tolist()
    return nats, agreement, kl


def get_teacher(
    task: str, corpus: Corpus, settings: Settings, folder: Path
) -> tuple[HuggingFaceModel, float]:
    """Return the teacher and the seconds it trained, from the output folder if it is there."""
    model = make_model(task, corpus, settings.teacher_layers, settings.teacher_width, 1000)
    path = folder / f"teacher-{task}.pt"
    if path.exists():
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        return model, saved["seconds"]
    steps, batch = settings.teacher_steps, settings.teacher_batch
    seconds = train(model, corpus.train, task, corpus.mask_id, steps, batch, 2e-3, 1000)
    torch.save({"model": model.state_dict(), "seconds": seconds}, path)
    return model, seconds


def run_row(
    row: Row, seed: int, task: str, corpus: Corpus, settings: Settings, teacher: HuggingFaceModel
) -> Result:
    """Train one student and measure it."""
    student = make_model(task, corpus, settings.student_layers, settings.student_width, seed)
    distillation = None
    if row.loss is not None:
        distillation = Distillation(
            teacher,
            row.loss,
            kd_loss_weight=row.kd_weight,
            org_loss_weight=1.0 - row.kd_weight,
            end_dur=row.end,
            mask_fn=row.mask_fn,
            telemetry=False,
        )
    text = corpus.train[: settings.limited_characters] if row.group == "limited" else corpus.train
    seconds = train(
        student, text, task, corpus.mask_id, row.steps, settings.batch, 3e-3, seed, distillation
    )
    measured = evaluate(student, teacher, corpus, task)
    return Result(task, row.group, row.name, seed, row.steps, seconds, *measured)


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def table(results: list[Result]) -> str:
    """Return the Markdown table of all rows, with differences paired by seed."""
    lines = [
        "| task | data | student | steps | CPU seconds | nats | paired difference | better in "
        "| agreement | KL from teacher |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    names = list(dict.fromkeys((r.task, r.group, r.row) for r in results))
    for task, group, name in names:
        rows = [r for r in results if (r.task, r.group, r.row) == (task, group, name)]
        base = next(row for t, g, row in names if (t, g) == (task, group))
        alone = {r.seed: r.nats for r in results if (r.task, r.group, r.row) == (task, group, base)}
        pairs = [r.nats - alone[r.seed] for r in rows if r.seed in alone]
        paired = ("", "")
        if name != base:
            paired = (spread(pairs), f"{sum(p < 0 for p in pairs)} of {len(pairs)}")
        lines.append(
            f"| {task} | {group} | {name} | {rows[0].steps} "
            f"| {statistics.mean(r.seconds for r in rows):.0f} "
            f"| {spread([r.nats for r in rows])} | {paired[0]} | {paired[1]} "
            f"| {100 * statistics.mean(r.agreement for r in rows):.1f} % "
            f"| {statistics.mean(r.kl for r in rows):.3f} |"
        )
    return "\n".join(lines)


def plot(results: list[Result], path: Path) -> None:
    """Draw nats against CPU seconds, one panel for each group of rows."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    groups = list(dict.fromkeys((r.task, r.group) for r in results))
    figure, axes = plt.subplots(
        1, len(groups), figsize=(5.5 * len(groups), 4.5), squeeze=False, layout="constrained"
    )
    for axis, (task, group) in zip(axes[0], groups, strict=True):
        mine = [r for r in results if (r.task, r.group) == (task, group)]
        for name in dict.fromkeys(r.row for r in mine):
            rows = [r for r in mine if r.row == name]
            axis.scatter([r.seconds for r in rows], [r.nats for r in rows], label=name, s=25)
        axis.set(title=f"{task}, {group}", xlabel="CPU seconds", ylabel="nats on held-out topics")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def report(folder: Path) -> str:
    """Write the table and the plot from the results in a folder; return the table."""
    saved = json.loads((folder / "results.json").read_text())
    results = [Result(**entry) for entry in saved["results"]]
    facts = [f"- {name}: {value}" for name, value in saved["facts"].items()]
    text = "\n".join([*facts, "", table(results), ""])
    (folder / "results.md").write_text(text)
    plot(results, folder / "results.png")
    return text


def machine() -> dict[str, str]:
    """Return what the numbers depend on beside the settings."""
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s) of torch",
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, mosaicml "
        f"{composer.__version__}, transformers {transformers.__version__}",
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument("--task", choices=("causal", "masked", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--rows", nargs="*", help="only rows whose 'group: name' holds one of these"
    )
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    given = parser.parse_args(arguments)
    settings = Settings(**{name: getattr(given, name) for name in asdict(Settings())})
    logging.getLogger("composer").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "results.json"
    saved = {"settings": asdict(settings), "facts": machine(), "results": []}
    if path.exists():
        saved = json.loads(path.read_text())
        if saved["settings"] != asdict(settings):
            raise SystemExit(f"{path} holds results of other settings: choose another --output.")
    corpus = Corpus()
    saved["facts"]["corpus"] = (
        f"{len(corpus.train)} characters to train on, {len(corpus.held_out)} held out, "
        f"{len(corpus.characters)} distinct"
    )
    for task in ("causal", "masked") if given.task == "both" else (given.task,):
        teacher, seconds = get_teacher(task, corpus, settings, given.output)
        nats = evaluate(teacher, teacher, corpus, task)[0]
        saved["facts"][f"{task} teacher"] = (
            f"{sum(p.numel() for p in teacher.parameters())} parameters, {settings.teacher_steps} "
            f"steps, {seconds:.0f} CPU s, {nats:.3f} nats"
        )
        print(f"{task} teacher: {saved['facts'][f'{task} teacher']}", flush=True)
        rows = causal_rows(settings) if task == "causal" else masked_rows(settings)
        for seed in range(given.seeds):
            for row in rows:
                if given.rows and not any(
                    part in f"{row.group}: {row.name}" for part in given.rows
                ):
                    continue
                key = (task, row.group, row.name, seed)
                if key in {(r["task"], r["group"], r["row"], r["seed"]) for r in saved["results"]}:
                    continue
                result = run_row(row, seed, task, corpus, settings, teacher)
                saved["results"].append(asdict(result))
                path.write_text(json.dumps(saved, indent=2) + "\n")
                print(
                    f"{task} {row.group} {row.name}, seed {seed}: {result.nats:.4f} nats, "
                    f"{result.seconds:.0f} CPU s",
                    flush=True,
                )
    print(report(given.output))


if __name__ == "__main__":
    main()
