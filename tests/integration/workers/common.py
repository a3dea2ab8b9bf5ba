"""What the scenarios that run in several processes share."""

from composer.core import Callback
from composer.utils import dist
from integration.harness import dataset, entries_of, mlp, weights
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence

BATCH = 10


def share(n=40, batch_size=BATCH, shuffle=False, **kwargs):
    """Return this rank's part of batches that hold ``batch_size`` samples over all ranks."""
    data = dataset(n, **kwargs)
    sampler = dist.get_sampler(data, shuffle=shuffle, drop_last=False)
    return DataLoader(data, batch_size=batch_size // dist.get_world_size(), sampler=sampler)


def distil(teachers=None, **kwargs):
    teachers = [mlp(seed) for seed in (1, 2, 3, 4)] if teachers is None else teachers
    return Distillation(teachers, KLDivergence(2.0), n_teachers_to_sample=1, **kwargs)


def found(trainer):
    return {"weights": weights(trainer.state.model), "log": entries_of(trainer)}


class Crash(Callback):
    """Stops a run at the start of one batch, as a machine that fails does."""

    def __init__(self, batch):
        self.batch = batch

    def batch_start(self, state, logger):
        if int(state.timestamp.batch) == self.batch:
            raise KeyboardInterrupt
