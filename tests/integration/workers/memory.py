"""A run of two processes in which the teacher of one runs out of memory, twice.

Started by ``test_processes.py`` through Composer's launcher, apart from the other scenarios, since
ranks that lose each other hang: ``memory.py FOLDER``.

Composer accepts ``device_train_microbatch_size='auto'`` on a GPU only. All that it asks of its
ranks about memory hangs on ``state.auto_microbatching``, which is set here by hand.
"""

import sys
import traceback
import warnings
from pathlib import Path

import torch
from composer.core import Event
from composer.utils import dist
from integration.harness import Classifier, Spy, mlp, trainer_for
from integration.workers.common import found, share
from torch import nn

from composer_distill import Distillation, KLDivergence

BATCH = 16  # over all ranks
# Of the teacher's calls on rank 1: the first batch as a whole; then, once Composer has halved the
# microbatch, the second half of the second batch, whose first half has had its backward.
FAILING_CALLS = 0, 4
DDP_TIMEOUT = 60  # seconds after which a rank that waits in vain stops


class Exhausted(nn.Module):
    """A teacher that runs out of memory at some of its calls."""

    def __init__(self, module, failing):
        super().__init__()
        self.module = module
        self.failing = failing
        self.sizes = []

    def forward(self, inputs):
        self.sizes.append(len(inputs))
        if len(self.sizes) - 1 in self.failing:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.module(inputs)


def exhausted_teacher():
    """Train with automatic microbatches while the teacher of rank 1 fails."""
    world = dist.get_world_size()
    failing = FAILING_CALLS if dist.get_global_rank() == 1 else ()
    teacher = Exhausted(mlp(1), failing)
    microbatches = Spy(Event.BATCH_END, lambda state: state.device_train_microbatch_size)
    trainer = trainer_for(
        Classifier(mlp(0)),
        Distillation(teacher, KLDivergence(2.0)),
        train_dataloader=share(3 * BATCH, BATCH),
        device_train_microbatch_size=BATCH // world,
        callbacks=microbatches,
    )
    trainer.state.auto_microbatching = world > 1
    trainer.fit()
    trainer.close()
    return {**found(trainer), "microbatches": microbatches.seen, "sizes": teacher.sizes}


def main(folder):
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    # Composer's own, at each of the two
    warnings.filterwarnings("ignore", message="CUDA out of memory or excessive memory")
    dist.initialize_dist("cpu", timeout=DDP_TIMEOUT)
    try:
        result = exhausted_teacher()
    except Exception:
        result = {"error": traceback.format_exc()}
    torch.save(result, folder / f"exhausted_teacher.{dist.get_global_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
