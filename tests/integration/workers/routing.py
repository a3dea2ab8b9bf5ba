"""Scenarios in several processes in which ranks have no samples for some teachers."""

import torch
from composer.utils import FSDP2Config, dist
from integration.harness import Classifier, dataset, entries_of, fit, mlp, trainer_for
from integration.workers.common import BATCH, found, share
from torch.utils.data import DataLoader

from composer_distill import (
    Distillation,
    KLDivergence,
    Teacher,
    teacher_confident,
    teacher_correct,
)


def one_of(indices):
    """Return a route of the samples at some indices of the data."""
    known = dataset(40).tensors[0][indices, 0].float()
    return lambda batch: torch.isin(batch[0][:, 0].float(), known)


def routed(dtype=torch.float64, **kwargs):
    """A teacher that rank 0 has no samples for, and one that rank 1 has none for, at times both."""
    teachers = [
        Teacher(mlp(1, dtype=dtype), route=one_of(slice(1, 20, 2)), weight=2.0, **kwargs),
        Teacher(mlp(2, dtype=dtype), route=one_of(slice(0, 40, 4))),
        Teacher(mlp(3, dtype=dtype), route=one_of(slice(0, 30, 3)), **kwargs),
    ]
    return teachers


def routed_teachers(folder):
    term = Distillation(routed(), KLDivergence(2.0), 0.5, 0.5, combine="probabilities")
    size = BATCH // dist.get_world_size()
    return found(
        fit(
            Classifier(mlp(0)),
            term,
            train_dataloader=share(),
            max_duration="2ep",
            device_train_microbatch_size=size if dist.get_global_rank() == 0 else 2,
        )
    )


def judged_answers(folder):
    """Answers that are right, of teachers that are routed, and of one that is not."""
    terms = [
        Distillation(routed(), KLDivergence(2.0), 0.3, 0.4, mask_fn=teacher_correct),
        Distillation(mlp(5), KLDivergence(2.0), 0.3, 1.0, mask_fn=teacher_confident(0.5)),
    ]
    return found(fit(Classifier(mlp(0)), terms, train_dataloader=share()))


def sharded_routes(folder):
    """The same FSDP2 student, taught by whole teachers and by sharded ones."""
    results = {}
    for sharding in ("replicated", "sharded"):
        data = dataset(40, dtype=torch.float32)
        sampler = dist.get_sampler(data, shuffle=False)
        teachers = routed(torch.float32)
        trainer = trainer_for(
            Classifier(mlp(0, dtype=torch.float32)),
            Distillation(teachers, KLDivergence(2.0), 0.5, 0.5, teacher_sharding=sharding),
            train_dataloader=DataLoader(data, batch_size=5, sampler=sampler),
            max_duration="2ep",
            device_train_microbatch_size=2,
            lr=0.1,
            parallelism_config={"fsdp": FSDP2Config()},
        )
        trainer.fit()
        cut = [any(hasattr(p, "to_local") for p in t.model.parameters()) for t in teachers]
        results[sharding] = {"log": entries_of(trainer), "cut": cut}
        trainer.close()
    try:
        trainer_for(
            Classifier(mlp(0, dtype=torch.float32)),
            Distillation(
                routed(torch.float32, microbatch_size=1),
                KLDivergence(),
                teacher_sharding="sharded",
            ),
            parallelism_config={"fsdp": FSDP2Config()},
        )
    except ValueError as error:
        results["said"] = str(error)
    return results
