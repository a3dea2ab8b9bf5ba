"""Runs every scenario in this process group and saves what each rank found.

Started by ``test_processes.py``, once, through Composer's launcher: ``ranks.py FOLDER``.
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from composer.models import ComposerModel
from composer.utils import FSDP2Config, dist
from integration.harness import (
    Classifier,
    Noisy,
    Recorder,
    batch_norm_mlp,
    dataset,
    entries_of,
    fit,
    forward_kl,
    mlp,
    trainer_for,
    weights,
)
from integration.workers.adapters import adapter_free
from integration.workers.caching import cached_answers, cached_by_a_cut_teacher, rows_of_ranks
from integration.workers.common import Crash, distil, found, share
from integration.workers.evaluating import padded_evaluations
from integration.workers.features import (
    features,
    features_in_microbatches,
    features_of_a_module_that_one_rank_uses_whole,
    features_of_a_module_that_ranks_made_apart,
    features_under_fsdp2,
)
from integration.workers.meta_teachers import meta_teachers
from integration.workers.overlapping import overlapping_teachers
from integration.workers.resuming import (
    loaded_ddp,
    loaded_fsdp2,
    loaded_fsdp2_without_distillation,
)
from integration.workers.routing import judged_answers, routed_teachers, sharded_routes
from integration.workers.running import run_scenarios
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, EMATeacher, KLDivergence, Snapshot
from composer_distill.weights.fingerprint import fingerprint


def equal_microbatches(folder):
    return found(fit(Classifier(mlp(0)), distil(), train_dataloader=share(), max_duration="2ep"))


def other_microbatches(folder):
    size = 5 if dist.get_global_rank() == 0 else 2
    trainer = fit(
        Classifier(mlp(0)),
        distil(),
        train_dataloader=share(),
        max_duration="2ep",
        device_train_microbatch_size=size,
    )
    return found(trainer)


def uneven_batches(folder):
    """Rank 0 holds six samples of each batch of ten, rank 1 four."""
    inputs, targets = dataset(40).tensors
    bounds = slice(0, 6) if dist.get_global_rank() == 0 else slice(6, 10)
    if dist.get_world_size() == 1:
        bounds = slice(0, 10)
    data = [(inputs[i : i + 10][bounds], targets[i : i + 10][bounds]) for i in range(0, 40, 10)]
    trainer = fit(
        Classifier(mlp(0)),
        distil(),
        train_dataloader=data,
        device_train_microbatch_size=2,
        max_duration="2ep",
    )
    return found(trainer)


def windows_and_schedules(folder):
    term = distil(
        start_dur=0.25,
        end_dur="60sp",
        kd_loss_weight=lambda state: 0.1 * int(state.timestamp.batch),
    )
    return found(fit(Classifier(mlp(0)), term, train_dataloader=share(), max_duration="2ep"))


def two_instances(folder):
    terms = [distil(), Distillation(mlp(5), torch.nn.MSELoss(), 0.2, 0.5, start_dur="2ba")]
    return found(fit(Classifier(mlp(0)), terms, train_dataloader=share(), lr=0.1))


def moving_average(folder):
    teachers = [EMATeacher(decay=0.8, warmup=3), Snapshot(start_dur="2ba")]
    term = Distillation(teachers, KLDivergence(2.0), 0.5, 0.5)
    return found(fit(Classifier(mlp(0)), term, train_dataloader=share(), max_duration="2ep"))


def no_task_loss(folder):
    term = distil(kd_loss_weight=1.0, org_loss_weight=0.0)
    return found(fit(Classifier(mlp(0)), term, train_dataloader=share()))


def drawn_teachers(folder):
    teachers = [Recorder(mlp(seed)) for seed in (1, 2, 3, 4)]
    counts = []
    trainer = trainer_for(
        Classifier(mlp(0)),
        distil(teachers),
        train_dataloader=share(),
        device_train_microbatch_size=5 if dist.get_global_rank() == 0 else 1,
        max_duration="1ba",
    )
    for _ in range(8):
        before = [len(teacher.inputs) for teacher in teachers]
        trainer.fit(duration="1ba", reset_time=False)
        after = [len(teacher.inputs) for teacher in teachers]
        counts.append([i for i in range(4) if after[i] > before[i]])
    trainer.close()
    return {"drawn": counts}


def streams_after_a_noisy_teacher(folder):
    def run(algorithms):
        fit(Classifier(mlp(0, dropout=0.5)), algorithms, train_dataloader=share(shuffle=True))
        return torch.get_rng_state()

    plain, noisy = run(()), run(Distillation(Noisy(mlp(1)), KLDivergence()))
    return {"same": torch.equal(plain, noisy)}


def teacher_untouched(folder):
    teacher = batch_norm_mlp(1)
    fit(Classifier(batch_norm_mlp(0)), distil([teacher]), train_dataloader=share())
    return {"teacher": weights(teacher)}


def differing_teachers(folder):
    """The second teacher of each rank is another one."""
    teachers = [mlp(1), mlp(2 + dist.get_global_rank())]
    try:
        trainer_for(Classifier(mlp(0)), distil(teachers), train_dataloader=share())
    except ValueError as error:
        return {"said": str(error)}
    return {"said": "nothing"}


def resumed(folder):
    """Run straight, then crash at several batches and resume from the latest checkpoint."""

    def trainer(**kwargs):
        return trainer_for(
            Classifier(mlp(0, dropout=0.5)),
            distil(start_dur=0.25, end_dur=0.75),
            train_dataloader=share(shuffle=True),
            max_duration="2ep",
            run_name="resumed",
            **kwargs,
        )

    straight = trainer()
    straight.fit()
    straight.close()
    runs = [found(straight)]
    for batch in (1, 3, 6):
        options = {
            "save_folder": str(folder / f"saved-{batch}"),
            "save_interval": "1ba",
            "autoresume": True,
        }
        crashing = trainer(callbacks=Crash(batch), **options)
        with suppress(KeyboardInterrupt):
            crashing.fit()
        crashing.close()
        again = trainer(**options)
        again.fit()
        again.close()
        runs.append(found(again))
    return {"runs": runs}


class Wrapped(ComposerModel):
    """A teacher that is a ComposerModel."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, batch):
        return self.module(batch[0])

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch[1])


def sharded_students(folder):
    """The same FSDP2 student, taught by whole teachers and by sharded ones."""
    results = {}
    for sharding in ("replicated", "sharded"):
        for kind in ("plain", "composer", "mixed"):
            teachers: list = [mlp(seed, dtype=torch.float32) for seed in (1, 2, 3)]
            if kind == "composer":
                teachers = [Wrapped(teacher) for teacher in teachers]
            if kind == "mixed":
                teachers[1] = Wrapped(teachers[1])
            data = dataset(40, dtype=torch.float32)
            sampler = dist.get_sampler(data, shuffle=False)
            trainer = trainer_for(
                Classifier(mlp(0, dtype=torch.float32)),
                distil(teachers, teacher_sharding=sharding),
                train_dataloader=DataLoader(data, batch_size=5, sampler=sampler),
                max_duration="2ep",
                device_train_microbatch_size=5,
                lr=0.1,
                parallelism_config={"fsdp": FSDP2Config()},
            )
            trainer.fit()
            cut = [
                any(hasattr(p, "to_local") for p in teacher.parameters()) for teacher in teachers
            ]
            marks = [fingerprint(teacher) for teacher in teachers]
            results[f"{kind}, {sharding}"] = {
                "log": entries_of(trainer),
                "cut": cut,
                "marks": marks,
            }
            trainer.close()
    return results


def auto_sharding(folder):
    small = mlp(1, dtype=torch.float32)
    data = dataset(20, dtype=torch.float32)
    trainer = trainer_for(
        Classifier(mlp(0, dtype=torch.float32)),
        Distillation(small, forward_kl()),
        train_dataloader=DataLoader(data, batch_size=5, sampler=dist.get_sampler(data)),
        parallelism_config={"fsdp": FSDP2Config()},
    )
    trainer.close()
    return {"cut": any(hasattr(p, "to_local") for p in small.parameters())}


SCENARIOS = [
    equal_microbatches,
    other_microbatches,
    uneven_batches,
    windows_and_schedules,
    two_instances,
    no_task_loss,
    moving_average,
    routed_teachers,
    judged_answers,
    adapter_free,
    overlapping_teachers,
    drawn_teachers,
    streams_after_a_noisy_teacher,
    teacher_untouched,
    differing_teachers,
    resumed,
    padded_evaluations,
    loaded_ddp,
    features,
    features_in_microbatches,
    features_of_a_module_that_one_rank_uses_whole,
    features_of_a_module_that_ranks_made_apart,
    cached_answers,
    rows_of_ranks,
]
SHARDED = [
    sharded_students,
    auto_sharding,
    sharded_routes,
    loaded_fsdp2,
    loaded_fsdp2_without_distillation,
    meta_teachers,
    features_under_fsdp2,
    cached_by_a_cut_teacher,
]


# torch's own, when it writes a sharded checkpoint; Composer's, at the short last batch of a set
IGNORED = ("TypedStorage is deprecated", "Cannot split tensor of length")


if __name__ == "__main__":
    run_scenarios(SCENARIOS + SHARDED, Path(sys.argv[1]), IGNORED)
