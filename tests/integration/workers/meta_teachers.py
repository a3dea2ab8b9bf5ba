"""Teachers that are built without weights, and whose weights come from a file."""

import torch
from composer.utils import FSDP2Config, dist
from integration.harness import Classifier, entries_of, mlp, trainer_for
from integration.workers.common import share

from composer_distill import Distillation, KLDivergence, Teacher


def meta_teachers(folder):
    """The same FSDP2 student, taught by an ordinary teacher and by one from the meta device."""
    ordinary = mlp(1, dtype=torch.float32)
    path = folder / f"weights.{dist.get_global_rank()}.pt"
    torch.save(ordinary.state_dict(), path)

    def from_meta():
        return Teacher(mlp(2, dtype=torch.float32).to("meta"), checkpoint=path)

    return {
        "ordinary": _log(ordinary, "replicated"),
        "replicated": _log(from_meta(), "replicated"),
        "sharded": _log(from_meta(), "sharded"),
    }


def _log(teacher, sharding):
    trainer = trainer_for(
        Classifier(mlp(0, dtype=torch.float32)),
        Distillation(teacher, KLDivergence(2.0), teacher_sharding=sharding),
        train_dataloader=share(dtype=torch.float32),
        lr=0.1,
        parallelism_config={"fsdp": FSDP2Config()},
    )
    trainer.fit()
    trainer.close()
    return entries_of(trainer)
