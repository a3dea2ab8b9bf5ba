"""A student that FSDP2 cuts, taught by its moving average and its snapshots.

Started by ``test_followers.py`` through Composer's launcher, in two processes, then in one, which
reads what two have saved: ``followers.py FOLDER``.
"""

import os
import sys
from pathlib import Path

import torch
from composer.core import Event
from composer.utils import FSDP2Config, dist
from integration.harness import Classifier, Spy, entries_of, mlp, trainer_for
from integration.workers.common import share
from integration.workers.running import run_scenarios
from torch import float32, nn, optim

from composer_distill import Distillation, EMATeacher, KLDivergence, Snapshot

DECAY, EVERY, WARMUP = 0.8, 2, 3
STOP, BATCHES, LR = 3, 8, 0.25


def uneven(seed=0, dropout=0.0):
    """Return a classifier of which two ranks hold unlike parts, with buffers of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Dropout(dropout), nn.Linear(7, 4)
        return nn.Sequential(*layers)


def plain(name):
    return name.replace("_checkpoint_wrapped_module.", "")


def whole(model):
    """Return a model's parameters and buffers, gathered from the ranks; every rank must ask."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        plain(name): (t.full_tensor() if hasattr(t, "full_tensor") else t).detach().clone()
        for name, t in named
    }


def parts(model):
    """Return what of a model's parameters and buffers lies on this rank."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {
        name: (t.to_local() if hasattr(t, "to_local") else t).detach().clone() for name, t in named
    }


def _trainer(module, teachers, **kwargs):
    student = Classifier(module)
    kwargs.setdefault("optimizers", optim.SGD(student.parameters(), lr=LR))
    kwargs.setdefault("parallelism_config", {"fsdp": FSDP2Config()})
    return trainer_for(
        student,
        Distillation(teachers, KLDivergence(1.0), 0.5, 0.5),
        train_dataloader=share(shuffle=kwargs.pop("shuffle", False), dtype=float32),
        max_duration="2ep",
        **kwargs,
    )


def _watched(module, evaluate=False, **kwargs):
    """Return the student, its mean and its snapshot, whole, after each batch."""
    teachers = [
        EMATeacher(decay=DECAY, update_every=f"{EVERY}ba", warmup=WARMUP),
        Snapshot(start_dur=f"{STOP}ba"),
    ]

    def look(state):
        return [whole(model.module) for model in (state.model, *(t.model for t in teachers))]

    spy = Spy(Event.BATCH_END, look)
    trainer = _trainer(module, teachers, callbacks=spy, **kwargs)
    first = whole(trainer.state.model.module)
    if evaluate:
        trainer.eval(share(dtype=float32))
    trainer.fit()
    trainer.close()
    return {
        "first": first,
        "seen": spy.seen,
        "log": entries_of(trainer),
        "cut": [hasattr(p, "to_local") for t in teachers for p in t.model.parameters()],
        "trains": [m.training for t in teachers for m in t.model.modules()],
        "wants_gradients": [p.requires_grad for t in teachers for p in t.model.parameters()],
        "names": [plain(name) for name in trainer.state.model.state_dict()],
    }


def by_its_mean(folder):
    return _watched(mlp(0, dtype=float32))


def in_microbatches(folder):
    return _watched(mlp(0, dtype=float32), device_train_microbatch_size=2)


def with_buffers(folder):
    return _watched(uneven())


def after_an_evaluation(folder):
    """An evaluation leaves the student gathered."""
    return _watched(mlp(0, dtype=float32), evaluate=True)


def with_recomputation(folder):
    """Recomputed activations put a wrapper between the student and the names of its weights."""
    module = mlp(0, dtype=float32)
    module[0]._activation_checkpointing = True
    config = FSDP2Config(activation_checkpointing=True)
    return _watched(module, parallelism_config={"fsdp": config})


def unsharded(folder):
    """The same by DDP, with the step that gradients make which are added up and not averaged."""
    module = mlp(0, dtype=float32)
    optimizer = optim.SGD(module.parameters(), lr=LR * dist.get_world_size())
    return _watched(module, parallelism_config=None, optimizers=optimizer)


def _run(kind, **kwargs):
    """Train by a mean, a snapshot of before the stop, and one of after it."""
    starts = 2, STOP + 2
    teachers = [EMATeacher(decay=DECAY), *(Snapshot(start_dur=f"{start}ba") for start in starts)]
    student = mlp(0, dropout=0.5, dtype=float32)
    trainer = _trainer(
        student,
        teachers,
        shuffle=True,
        optimizers=optim.AdamW(student.parameters(), lr=0.05),
        parallelism_config={"fsdp": FSDP2Config(state_dict_type=kind)},
        **kwargs,
    )
    models = (trainer.state.model, *(teacher.model for teacher in teachers))
    before = [whole(model.module) for model in models]
    spy = Spy(Event.BATCH_END, lambda state: [whole(model.module) for model in models])
    trainer.state.callbacks.append(spy)
    trainer.fit()
    trainer.close()
    return {
        "before": before,
        "seen": spy.seen,
        "parts": [parts(model.module) for model in models],
        "batches": int(trainer.state.timestamp.batch),
    }


def _saved(folder, kind):
    return next((folder / kind).glob(f"*ba{STOP}"))


def _resumed(folder, kind):
    place = folder / kind
    saving = {"save_folder": str(place), "save_interval": f"{STOP}ba", "save_filename": "ba{batch}"}
    straight = _run(kind, **saving)
    return {"straight": straight, "resumed": _run(kind, load_path=str(_saved(folder, kind)))}


def resumed_from_shards(folder):
    return _resumed(folder, "sharded")


def resumed_from_one_file(folder):
    return _resumed(folder, "full")


def shards_of_two_processes(folder):
    """The same checkpoints on another number of processes."""
    return _run("sharded", load_path=str(_saved(folder, "sharded")))


def file_of_two_processes(folder):
    return _run("full", load_path=str(_saved(folder, "full")))


IN_ONE = [by_its_mean, shards_of_two_processes, file_of_two_processes]
IN_TWO = [
    by_its_mean,
    in_microbatches,
    with_buffers,
    after_an_evaluation,
    with_recomputation,
    unsharded,
    resumed_from_shards,
    resumed_from_one_file,
]

IGNORED = (
    "TypedStorage is deprecated",  # torch's own, when it writes a sharded checkpoint
    "The current world size",  # Composer's, of states of random numbers that one process leaves
)


if __name__ == "__main__":
    scenarios = IN_ONE if os.environ["WORLD_SIZE"] == "1" else IN_TWO
    run_scenarios(scenarios, Path(sys.argv[1]), IGNORED)
