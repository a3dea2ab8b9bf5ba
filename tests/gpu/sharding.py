"""A teacher sharded by FSDP in one process: its student trains to the losses of a whole one's."""

import warnings
from typing import Any

import torch
from gpu.device import DEVICE, DRY, row
from integration.harness import Classifier, dataset, logged, mlp, trainer_for
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence


def train(sharding: Any, parallelism: dict[str, Any] | None) -> list[float]:
    algorithm = Distillation(
        Classifier(mlp(1, dtype=torch.float32)), KLDivergence(2.0), teacher_sharding=sharding
    )
    trainer = trainer_for(
        Classifier(mlp(0, dtype=torch.float32)),
        algorithm,
        train_dataloader=DataLoader(dataset(20, dtype=torch.float32), batch_size=10),
        max_duration="4ep",
        lr=0.1,
        device="gpu" if DEVICE.type == "cuda" else "cpu",
        precision="fp32",
        parallelism_config=parallelism,
    )
    trainer.fit()
    trainer.close()
    return logged(trainer, "loss/train/kd")


def main() -> None:
    from composer.utils import FSDPConfig

    # Composer shards on GPUs alone
    parallelism = None if DRY else {"fsdp": FSDPConfig()}
    whole = train("replicated", parallelism)
    cut = train("replicated" if DRY else "sharded", parallelism)
    apart = max(abs(a - b) / abs(b) for a, b in zip(cut, whole, strict=True))
    row("sharded against whole", batches=len(whole), largest_relative_difference=f"{apart:.1e}")
    if apart > 1e-4:
        raise SystemExit("a sharded teacher's losses differ from a whole one's")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
