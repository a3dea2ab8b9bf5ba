"""One run of text classification: sentences, the fine-tuned MiniLM-L6, and its students."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.core import Algorithm
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingScheduler
from composer.utils import dist
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from composer_distill import (
    CachedTeacher,
    Distillation,
    FeatureTerm,
    KLDivergence,
    cache_teacher,
    student_from_teacher,
)
from composer_distill.losses import HiddenMSE, MiniLMRelation
from tests.benchmarks.evidence.classes_texts import CLASSES, Texts, load, model_path
from tests.benchmarks.evidence.experiment import OfOneTeacher
from tests.benchmarks.evidence.runs import DIGITS, StepClock, median_step, today

BATCH = 16
TEACHER_RATE, TEMPERATURE, KD_WEIGHT = 5e-5, 2.0, 0.9
TEACHER_LAYERS = 6


@dataclass(frozen=True)
class Scale:
    """How long students and teachers train, on which texts, and on how many at the most.

    A teacher of few labels trains for few or for many batches.
    """

    steps: int = 100
    teacher_steps: int = 240
    few_steps: tuple[int, ...] = (60, 240)
    texts: tuple[str, ...] = ("movies", "news")
    most: int = 4000


FAST = Scale(steps=4, teacher_steps=4, few_steps=(2, 4), texts=("news",), most=100)


@dataclass(frozen=True)
class Setting(OfOneTeacher):
    """All that a student's run depends on, beside its seed.

    Args:
        text: ``"movies"`` or ``"news"``.
        layers: How many of the teacher's six layers the student begins with.
        rate: Peak of AdamW's cosine.
        steps: Batches to train on.
        teacher_steps: Batches that the teacher trained on.
        most: How many texts there are to train on, at the most.
        way: What is learned beside the labels: ``"logits"``, ``"relations"``, ``"hidden"``.
        few: Whether 5 % of the texts have labels, for the teacher too.
        unlabelled: Whether it sees all texts, and no label.
        smoothing: Of the labels; 0: none.
        validation: Whether it is scored on the texts held out for tuning.
    """

    text: str
    layers: int
    rate: float
    steps: int
    teacher_steps: int
    most: int
    way: str = "alone"
    few: bool = False
    unlabelled: bool = False
    smoothing: float = 0.0
    validation: bool = False

    @property
    def teacher(self) -> str:
        """What files and results call the teacher."""
        labels = "5-percent" if self.few else "all"
        return f"{self.text}-{labels}-of-{self.most}-steps-{self.teacher_steps}"


def run(setting: Setting, seed: int, folder: Path) -> dict[str, Any]:
    """Train one student and return what was measured."""
    parts = load(setting.text, folder, setting.most)
    teacher = taught(setting, folder)
    cut = student_from_teacher(teacher.model, layers=setting.layers)
    student = Classifier(cut, setting.smoothing)
    data = parts["few" if setting.few and not setting.unlabelled else "train"]
    algorithms = distil(setting, teacher, folder)
    begin, clock = time.process_time(), StepClock()
    fit(student, data, setting.steps, setting.rate, seed, algorithms, clock)
    numbers = {
        "cpu_seconds": time.process_time() - begin,
        "step_cpu_ms": 1000 * median_step(clock.cpu),
        **quality(student, parts["held out" if setting.validation else "test"]),
    }
    return {"date": today(), **{name: round(value, DIGITS) for name, value in numbers.items()}}


class Classifier(HuggingFaceModel):
    """A model whose embeddings stay as they are."""

    def __init__(self, model: Any, smoothing: float = 0.0) -> None:
        super().__init__(model, use_logits=True, metrics=[])
        self.smoothing = smoothing
        model.bert.embeddings.requires_grad_(False)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the cross-entropy, with smoothed labels if asked for."""
        labels = batch["labels"]
        return F.cross_entropy(outputs["logits"], labels, label_smoothing=self.smoothing)


def distil(setting: Setting, teacher: HuggingFaceModel, folder: Path) -> list[Algorithm]:
    """Return the algorithm of the setting's way, if it has one."""
    if setting.way == "alone":
        return []
    if setting.way == "logits":
        weight = 1.0 if setting.unlabelled else KD_WEIGHT
        cached = CachedTeacher(folder / "answers" / setting.teacher)
        loss = KLDivergence(temperature=TEMPERATURE)
        return [Distillation(cached, loss, weight, 1.0 - weight, telemetry=False)]
    last = setting.layers - 1
    terms = {
        "relations": FeatureTerm(
            f"attention.{last}",
            f"attention.{TEACHER_LAYERS - 1}",
            loss=MiniLMRelation(relation_heads=48),
        ),
        "hidden": FeatureTerm(
            f"hidden_states.{setting.layers}", f"hidden_states.{TEACHER_LAYERS}", loss=HiddenMSE()
        ),
    }
    chosen = [terms[setting.way]]
    return [Distillation(teacher, None, 0.0, 1.0, feature_terms=chosen, telemetry=False)]


def fit(
    model: HuggingFaceModel,
    data: Texts,
    steps: int,
    rate: float,
    seed: int,
    algorithms: Sequence[Algorithm] = (),
    clock: StepClock | None = None,
) -> None:
    """Train a model in place; the order of its texts depends on ``seed`` alone."""
    loader = DataLoader(
        data,
        batch_size=min(BATCH, len(data)),
        sampler=dist.get_sampler(data, shuffle=True, drop_last=True, seed=seed),
        drop_last=True,
        collate_fn=dict,
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(trained, lr=rate, weight_decay=0.01, fused=True),
        schedulers=CosineAnnealingScheduler(),
        algorithms=list(algorithms),
        callbacks=[] if clock is None else [clock],
        device="cpu",
        seed=seed,
        progress_bar=False,
    )
    trainer.fit()
    trainer.close()


def taught(setting: Setting, folder: Path) -> HuggingFaceModel:
    """Return the fine-tuned teacher, made now if it is not there, with its answers kept."""
    torch.manual_seed(0)  # of the new head
    model = AutoModelForSequenceClassification.from_pretrained(
        model_path(), num_labels=CLASSES[setting.text], attn_implementation="eager"
    )
    teacher, parts = Classifier(model), load(setting.text, folder, setting.most)
    weights = folder / "teachers" / f"{setting.teacher}.pt"
    if weights.exists():
        teacher.load_state_dict(torch.load(weights, weights_only=True))
        return teacher
    weights.parent.mkdir(parents=True, exist_ok=True)
    begin = time.process_time()
    labelled = parts["few" if setting.few else "train"]
    fit(teacher, labelled, setting.teacher_steps, TEACHER_RATE, 0)
    end = time.process_time()
    batches = [parts["train"].part(i, i + BATCH) for i in range(0, len(parts["train"]), BATCH)]
    answers = folder / "answers" / setting.teacher
    cache_teacher(teacher, [each.__getitems__(range(len(each))) for each in batches], answers)
    numbers = {
        "cpu_seconds": end - begin,
        "cache_cpu_seconds": time.process_time() - end,
        **quality(teacher, parts["test"]),
        "held_out_nll": quality(teacher, parts["held out"])["nll"],
    }
    record = {name: round(value, DIGITS) for name, value in numbers.items()}
    weights.with_suffix(".json").write_text(json.dumps(record))
    torch.save(teacher.state_dict(), weights)
    return teacher


@torch.no_grad()
def quality(model: HuggingFaceModel, data: Texts) -> dict[str, float]:
    """Return accuracy and NLL of a model in eval mode."""
    model.eval()
    found = [data.__getitems__(range(i, min(i + 64, len(data)))) for i in range(0, len(data), 64)]
    logits = torch.cat([model(batch)["logits"] for batch in found])
    model.train()
    right = (logits.argmax(-1) == data.labels).float().mean().item()
    return {"accuracy": right, "nll": F.cross_entropy(logits, data.labels).item()}
