"""One process of a run in which every second sample has no label at all."""

import os
import sys
from pathlib import Path

import torch
from composer import Trainer
from composer.core import DataSpec
from composer.utils import dist
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence
from tests.integration import language
from tests.integration.harness import Log, logged

NAMES = ("loss/train/kd", "distillation/agreement", "distillation/kl", "loss/train/org")


def train(folder: Path) -> None:
    """Train one batch of four samples; with two ranks, the second gets those without labels."""
    if "WORLD_SIZE" in os.environ:
        dist.initialize_dist("cpu")
    torch.set_num_threads(1)
    (batch,) = language.batches("causal", n=1, size=4)
    batch["labels"][1::2] = -100
    samples = [{key: value[index] for key, value in batch.items()} for index in range(4)]
    loader = DataLoader(
        samples,
        batch_size=4 // dist.get_world_size(),
        sampler=dist.get_sampler(samples, shuffle=False),
    )
    student = language.Counts(1)
    trainer = Trainer(
        model=student,
        train_dataloader=DataSpec(
            loader,
            get_num_tokens_in_batch=lambda batch: {
                "total": 1,
                "loss_generating": int((batch["labels"][:, 1:] != -100).sum()),
            },
        ),
        max_duration="1ba",
        optimizers=torch.optim.SGD(student.parameters(), lr=0.05),
        algorithms=Distillation(language.Counts(2), KLDivergence(1.0)),
        accumulate_train_batch_on_tokens=True,
        device="cpu",
        loggers=[Log()],
        progress_bar=False,
        seed=1,
    )
    trainer.fit()
    trainer.close()
    torch.save(
        {
            "weights": student.state_dict(),
            "logged": [logged(trainer, name)[0] for name in NAMES],
        },
        folder / f"rank{dist.get_global_rank()}.pt",
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]))
