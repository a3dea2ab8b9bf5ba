"""Students that write in two processes. Started by ``test_on_policy_processes.py``, once."""

import sys
from pathlib import Path

import torch
from composer.core import Event, Precision
from composer.devices import DeviceCPU
from composer.utils import FSDP2Config, dist
from integration.harness import Spy, trainer_for, weights
from integration.workers.common import found
from integration.workers.resuming import local_weights
from integration.workers.running import run_scenarios
from on_policy.by_hand import EOS, PAD, batches, prompts_by_hand, student
from torch.utils.data import DataLoader

from composer_distill import Distillation, OnPolicy
from composer_distill.losses import JensenShannonDivergence
from composer_distill.on_policy.drawing import stream_seed
from composer_distill.on_policy.generation import Sampling, continuations
from composer_distill.on_policy.text import left_padded, lengths

LR, NEW, SIZE, BATCHES = 0.3, 6, 4, 4
SEED = 3  # a seed by which one rank has written its first batch before the other


def whole_batches():
    return batches(BATCHES, SIZE)


def of_rank(batch, rank, world):
    """The rows that a rank reads: samplers give every second one."""
    return {name: value[rank::world] for name, value in batch.items()}


def share():
    rows = [{k: v[i] for k, v in batch.items()} for batch in whole_batches() for i in range(SIZE)]
    sampler = dist.get_sampler(rows, shuffle=False)
    return DataLoader(rows, batch_size=SIZE // dist.get_world_size(), sampler=sampler)


def distil():
    teacher = student(seed=1)
    return Distillation(teacher, JensenShannonDivergence(beta=0.5), 1.0, 0.0)


def run(model, fraction=1.0, kept=1, **options):
    """Train; return the Trainer, and the texts that this rank trained on."""
    seen = Spy(
        Event.BATCH_START,
        lambda state: [row[row != -100].tolist() for row in state.batch["labels"]],
    )
    trainer = trainer_for(
        model,
        [OnPolicy(fraction, NEW, seed=SEED, buffer_batches=kept), distil()],
        train_dataloader=share(),
        lr=LR,
        callbacks=seen,
        **options,
    )
    trainer.fit()
    trainer.close()
    return trainer, seen.seen


def replicated(folder):
    trainer, texts = run(student(attn_pdrop=0.0))
    return {**found(trainer), "texts": texts}


def mixed(folder):
    trainer, texts = run(student(), fraction=0.5)
    return {**found(trainer), "texts": texts}


def resumed(folder):
    options = {"kept": 3, "save_folder": str(folder / "resumed"), "save_interval": "1ba"}
    straight, texts = run(
        student(attn_pdrop=0.2), save_filename="ba{batch}.pt", save_latest_filename=None, **options
    )
    path = str(folder / "resumed" / "ba2.pt")
    again, later = run(student(attn_pdrop=0.2), load_path=path, save_overwrite=True, **options)
    return {
        "straight": weights(straight.state.model),
        "resumed": weights(again.state.model),
        "texts": (texts, later),
    }


def sharded(folder):
    trainer, texts = run(student(), parallelism_config={"fsdp": FSDP2Config()}, max_duration="2ba")
    cut = any(hasattr(p, "to_local") for p in trainer.state.model.parameters())
    return {"texts": texts, "cut": cut, "weights": local_weights(trainer)}


def resumed_sharded(folder):
    """FSDP2, and again from a checkpoint of which each rank wrote its part."""

    def go(**options):
        config = FSDP2Config(state_dict_type="sharded")
        options = {"parallelism_config": {"fsdp": config}, "kept": 3, **options}
        return run(student(), **options)

    saved = folder / "resumed_sharded"
    straight, texts = go(
        save_folder=str(saved),
        save_interval="2ba",
        save_filename="ba{batch}",
        save_latest_filename=None,
    )
    (path,) = (*saved.glob("ba2"), *saved.glob("*-ba2"))
    again, later = go(load_path=str(path))
    return {
        "straight": local_weights(straight),
        "resumed": local_weights(again),
        "texts": (texts, later),
    }


def sharded_by_the_first_fsdp(folder):
    """FSDP1 around the model itself: Composer's Trainer wants a GPU for it."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    class State:
        device, precision, precision_config = DeviceCPU(), Precision.FP32, None

    model = student("gpt2")
    rank = dist.get_global_rank()
    prompts = prompts_by_hand(of_rank(whole_batches()[0], rank, 2))
    model.model = FSDP(model.model, device_id=torch.device("cpu"), use_orig_params=True)
    ids, mask = left_padded([torch.tensor(prompt) for prompt in prompts], PAD)
    sampling = Sampling(
        NEW, ends=(EOS,), pad=PAD, seed=stream_seed(SEED, 0, rank), synchronised=True
    )
    made = continuations(State(), model, ids, mask, sampling)
    counted, _ = lengths(made, (EOS,))
    return {"texts": [[row[:n].tolist() for row, n in zip(made, counted, strict=True)]]}


SCENARIOS = [
    replicated,
    mixed,
    resumed,
    sharded,
    resumed_sharded,
    sharded_by_the_first_fsdp,
]


# torch's own, when it writes a sharded checkpoint
IGNORED = ("TypedStorage is deprecated",)


if __name__ == "__main__":
    run_scenarios(SCENARIOS, Path(sys.argv[1]), IGNORED)
