"""What ``overhead.py`` trains: models and data of a field, and the same distillation by hand.

All weights and data are random: nothing here depends on what a model knows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torchvision
from composer.models import ComposerClassifier, ComposerModel, HuggingFaceModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel

BATCHES = 4  # of an epoch, all the same
KD_WEIGHT, TASK_WEIGHT = 0.9, 0.1
CLASSES, PIXELS = 100, 32
VOCABULARY, TOKENS = 4096, 64


@dataclass(frozen=True)
class Workload:
    """Models and data of one field, and how one asks its models by hand."""

    title: str
    student: Callable[[], ComposerModel]
    teacher: Callable[[int], nn.Module]
    batches: Callable[[], DataLoader]
    ask: Callable[[nn.Module, Any], Tensor]
    rows: Callable[[Any], Tensor]  # the compared logits of an output, one row a position
    temperature: float


def seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    torch.manual_seed(seed)
    return build()


def vision(student: str, teacher: str, images: int) -> Workload:
    def net(name: str, seed: int) -> nn.Module:
        return seeded(partial(torchvision.models.get_model, name, num_classes=CLASSES), seed)

    def batches() -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(images, 3, PIXELS, PIXELS, generator=generator)
        labels = torch.randint(CLASSES, (images,), generator=generator)
        return DataLoader(list(zip(pixels, labels, strict=True)) * BATCHES, batch_size=images)

    return Workload(
        f"Images: {student} taught by {teacher}, {images} images of {PIXELS} x {PIXELS} pixels, "
        f"{CLASSES} classes",
        lambda: ComposerClassifier(net(student, 0), num_classes=CLASSES),
        lambda seed: net(teacher, seed),
        batches,
        lambda model, batch: model(batch[0]),
        lambda output: output,
        temperature=4.0,
    )


def gpt2(layers: int, width: int) -> GPT2LMHeadModel:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": width // 64, "n_positions": TOKENS}
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "loss_type": "ForCausalLM"}
    config = GPT2Config(vocab_size=VOCABULARY, use_cache=False, **sizes, **dropout, **special)
    return GPT2LMHeadModel(config)


def language(width: int, student_layers: int, teacher_layers: int, texts: int) -> Workload:
    def batches() -> DataLoader:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(VOCABULARY, (texts, TOKENS), generator=generator)
        return DataLoader([{"input_ids": x, "labels": x} for x in tokens] * BATCHES, texts)

    student = seeded(partial(gpt2, student_layers, width), 0)
    flops = 6 * sum(p.numel() for name, p in student.named_parameters() if "wpe" not in name)
    return Workload(
        f"Text: GPT-2 of {student_layers} layers taught by one of {teacher_layers}, width {width}, "
        f"{texts} texts of {TOKENS} tokens, vocabulary {VOCABULARY}: "
        f"{flops / VOCABULARY / 1e3:.0f} thousand operations a logit",
        lambda: HuggingFaceModel(seeded(partial(gpt2, student_layers, width), 0)),
        lambda seed: seeded(partial(gpt2, teacher_layers, width), seed),
        batches,
        lambda model, batch: model(input_ids=batch["input_ids"]).logits,
        lambda output: getattr(output, "logits", output)[:, :-1].flatten(0, 1),
        temperature=1.0,
    )


# By hand, 6 operations a parameter and token: GPT-2 of 124 million parameters has 15 thousand
# operations a logit of its vocabulary, so the second text workload is in its proportions
WORKLOADS = {
    "images": partial(vision, "resnet18", "resnet34", 16),
    "50 ms": partial(vision, "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", 8),
    "text": partial(language, 512, 4, 8, 2),
    "tiny text": partial(language, 256, 2, 6, 8),
}


class ByHand:
    """What one writes into the student's own loss without this package, while it ``acts``.

    Args:
        student: Its ``loss`` is replaced.
        teacher: Answers in eval mode.
        work: How to ask it, and the temperature.
    """

    def __init__(self, student: ComposerModel, teacher: nn.Module, work: Workload):
        self.acts = False
        self.own, self.teacher, self.work = student.loss, teacher.eval(), work
        student.loss = self.loss

    def loss(self, outputs: Any, batch: Any) -> Any:
        if not self.acts:
            return self.own(outputs, batch)
        work, heat = self.work, self.work.temperature
        with torch.no_grad():
            target = (work.rows(work.ask(self.teacher, batch)) / heat).softmax(-1)
        log_q = (work.rows(outputs) / heat).log_softmax(-1)
        term = F.kl_div(log_q, target, reduction="batchmean") * heat**2
        return TASK_WEIGHT * self.own(outputs, batch) + KD_WEIGHT * term
