"""What ``Distillation`` costs in a Trainer on a device, beyond student step and teacher forward.

Each contestant trains on the same batch again and again; a batch's time is measured from its end to
the next one's, over all batches of the run but the first ones. The teacher's forward is timed by
itself. Host synchronisations are those that torch tells of in one batch, less those without us;
more than one fail the run.
"""

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from composer import Callback, Trainer
from composer.models import ComposerModel, HuggingFaceModel
from gpu.device import DEVICE, DRY, milliseconds, quartiles, row, synchronise
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    ResNetForImageClassification,
)

from composer_distill import Distillation, KLDivergence, Teacher

WARM, MEASURED = (1, 3) if DRY else (5, 25)
SYNCHRONISATIONS = 1  # a batch may add: its values are read when it has ended


def resnet(deep: bool) -> nn.Module:
    sizes: dict[str, Any] = {"depths": [3, 4, 6, 3] if deep else [2, 2, 2, 2]}
    if DRY:
        sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(num_labels=10 if DRY else 1000, **sizes))


def images() -> Callable[[], dict[str, torch.Tensor]]:
    size, side = (4, 32) if DRY else (64, 224)
    pixels, labels = torch.randn(size, 3, side, side), torch.randint(10, (size,))
    return lambda: {"pixel_values": pixels, "labels": labels}


def gpt2(deep: bool) -> nn.Module:
    layers, width = (12, 768) if deep else (6, 768)
    if DRY:
        layers, width = 1, 16
    config = GPT2Config(
        vocab_size=100 if DRY else 50_257,
        n_layer=layers,
        n_embd=width,
        n_head=max(1, width // 64),
        n_positions=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def texts() -> Callable[[], dict[str, torch.Tensor]]:
    shape = (2, 8) if DRY else (8, 512)
    tokens = torch.randint(100 if DRY else 50_257, shape)
    return lambda: {"input_ids": tokens, "labels": tokens}


class Clock(Callback):
    """Times batches from end to end, and lets torch tell of synchronisations in the last one."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.told = 0
        self._since = 0.0
        self._warnings: Any = None

    def batch_end(self, state: Any, logger: Any) -> None:
        synchronise()
        now = time.perf_counter()
        if int(state.timestamp.batch) > WARM:
            self.times.append(1e3 * (now - self._since))
        if int(state.timestamp.batch) == WARM + MEASURED and DEVICE.type == "cuda":
            self._warnings = warnings.catch_warnings(record=True)
            self._seen = self._warnings.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        self._since = time.perf_counter()

    def fit_end(self, state: Any, logger: Any) -> None:
        if self._warnings is not None:
            torch.cuda.set_sync_debug_mode("default")
            self._warnings.__exit__(None, None, None)
            self.told = sum("synchroniz" in str(seen.message) for seen in self._seen)


def train(student: ComposerModel, batch: Any, algorithms: list[Any]) -> Clock:
    clock = Clock()
    batches: Any = [batch()] * (WARM + MEASURED + 1)
    data = DataLoader(batches, batch_size=None)
    size = len(batch()["labels"])
    trainer = Trainer(
        model=student,
        train_dataloader=data,
        max_duration=f"{WARM + MEASURED + 1}ba",
        optimizers=torch.optim.SGD(student.parameters(), lr=1e-4),
        algorithms=algorithms,
        callbacks=[clock],
        device="gpu" if DEVICE.type == "cuda" else "cpu",
        precision="amp_bf16" if DEVICE.type == "cuda" else "fp32",
        device_train_microbatch_size=size,
        progress_bar=False,
        log_to_console=False,
        auto_log_hparams=False,
    )
    trainer.fit()
    trainer.close()
    return clock


def teacher_time(teacher: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    teacher = teacher.to(DEVICE).eval()
    here = {name: value.to(DEVICE) for name, value in batch.items() if name != "labels"}

    def forward() -> None:
        with torch.no_grad(), torch.autocast(DEVICE.type, torch.bfloat16):
            teacher(**here)

    times = [milliseconds(forward) for _ in range(WARM + MEASURED)][WARM:]
    return quartiles(times)[1]


def compare(title: str, build: Callable[[bool], nn.Module], batch: Any) -> bool:
    """Print a row for each contestant; return whether all ran and none waited too often."""

    def teachers(count: int = 1, **options: Any) -> list[Teacher]:
        return [Teacher(build(True), **options) for _ in range(count)]

    def distil(teachers: list[Teacher], **options: Any) -> list[Any]:
        loss = KLDivergence(temperature=1.0)
        shares = {"org_loss_weight": 0.5, "kd_loss_weight": 0.5}
        return [Distillation(teachers, loss, **shares, **options)]

    contests: dict[str, Callable[[], list[Any]]] = {
        "alone": list,
        "distilled": lambda: distil(teachers()),
        "outside the window": lambda: distil(teachers(), start_dur=0.99),
        "overlapping": lambda: distil(teachers(), overlap=True),
        "offloaded": lambda: distil(teachers(offload=True)),
        "one of two": lambda: distil(teachers(2), n_teachers_to_sample=1),
    }
    forward = teacher_time(build(True), batch())
    alone, synced, all_well = 0.0, 0, True
    for name, algorithms in contests.items():
        try:
            clock = train(HuggingFaceModel(build(False)), batch, algorithms())
        except Exception as error:  # one contestant must not end the others
            all_well = False
            row(f"{title}: {name}", failed=f"{type(error).__name__}: {error}"[:200])
            continue
        low, middle, high = quartiles(clock.times)
        found: dict[str, Any] = {"ms": round(middle, 2), "iqr": [round(low, 2), round(high, 2)]}
        if name == "alone":
            alone, synced = middle, clock.told
            found["teacher_forward_ms"] = round(forward, 2)
        else:
            due = alone + (0.0 if name == "outside the window" else forward)
            found["over_due_percent"] = round(100 * (middle / due - 1), 1)
            found["host_synchronisations"] = clock.told - synced
            all_well &= clock.told - synced <= SYNCHRONISATIONS
        row(f"{title}: {name}", **found)
    return all_well


def main() -> bool:
    torch.manual_seed(0)
    works = ("images", resnet, images()), ("text", gpt2, texts())
    went = [compare(*work) for work in works]
    return all(went)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(not main())
