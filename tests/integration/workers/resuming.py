"""Runs of several processes that resume from a checkpoint of the middle of training."""

from composer.utils import FSDP2Config
from integration.harness import Classifier, mlp, trainer_for, weights
from integration.workers.common import distil, share
from torch import float32, optim

STOP = 3  # of 8 batches


def _run(student, term, **kwargs):
    trainer = trainer_for(
        student,
        term,
        optimizers=optim.AdamW(student.parameters(), lr=0.05),
        max_duration="2ep",
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    return trainer


def _straight_and_resumed(run, folder):
    """Run straight, saving on the way, and again from what was saved."""
    straight = run(save_folder=str(folder), save_interval=f"{STOP}ba", save_filename="ba{batch}")
    # Composer puts a sharded checkpoint into a folder that it names itself
    (path,) = (*folder.glob(f"ba{STOP}"), *folder.glob(f"*-ba{STOP}"))
    resumed = run(load_path=str(path))
    return {
        "straight": local_weights(straight),
        "resumed": local_weights(resumed),
        "batches": int(resumed.state.timestamp.batch),
    }


def local_weights(trainer):
    """Return this rank's part of the student's weights."""
    return {
        name: value.to_local() if hasattr(value, "to_local") else value
        for name, value in weights(trainer.state.model).items()
    }


def loaded_ddp(folder):
    def run(**kwargs):
        student = Classifier(mlp(0, dropout=0.5))
        term = distil(start_dur=0.25, end_dur=0.75)
        return _run(student, term, train_dataloader=share(shuffle=True), **kwargs)

    return _straight_and_resumed(run, folder / "loaded_ddp")


def loaded_fsdp2(folder, distilled=True):
    def run(**kwargs):
        student = Classifier(mlp(0, dropout=0.5, dtype=float32))
        teachers = [mlp(seed, dtype=float32) for seed in (1, 2, 3)]
        term = distil(teachers, start_dur=0.25, end_dur=0.75, teacher_sharding="replicated")
        return _run(
            student,
            term if distilled else (),
            train_dataloader=share(shuffle=True, dtype=float32),
            parallelism_config={"fsdp": FSDP2Config()},
            **kwargs,
        )

    return _straight_and_resumed(run, folder / f"loaded_fsdp2_{distilled}")


def loaded_fsdp2_without_distillation(folder):
    return loaded_fsdp2(folder, distilled=False)
