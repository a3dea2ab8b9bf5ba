"""Runs of LLM Foundry in each of two processes: whole, and cut by FSDP as its YAML says."""

import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from unittest import mock

import torch
from composer.utils import dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from tests.foundry.test_models import LOSS, hf
from tests.foundry.world import MPT, finetuning, logged, recipe, run, text

FSDP = {"sharding_strategy": "FULL_SHARD", "mixed_precision": "DEFAULT"}
KINDS = {
    "mpt": ("text", MPT, "012"),
    "hf": ("finetuning", {}, "012"),
    "mpt mixed": ("text", MPT | {"init_device": "mixed"}, "2"),
    "hf mixed": ("finetuning", {"init_device": "mixed"}, "2"),
    "mpt meta": ("text", MPT | {"init_device": "meta"}, "12"),
    "hf meta": ("finetuning", {"init_device": "meta", "pretrained": False}, "12"),
}
"""The loader, the student and the versions of FSDP of each run."""
STILL = {"name": "decoupled_adamw", "lr": 0.0, "weight_decay": 0.0}


def distilled(home, kind, **changes):
    """Return what a run logs: two teachers, one cut with the student where that is cut."""
    name, model, _ = KINDS[kind]
    loader = text(home["rows"]) if name == "text" else finetuning(home["pairs"])
    device = "meta" if "meta" in kind else "cpu"  # a teacher is whole all the same
    teachers = [
        {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2, "init_device": device}},
        {"pretrained_model_name_or_path": home["teacher"]},
    ]
    distillation = {
        "teachers": teachers,
        "kd_loss_fn": LOSS,
        "teacher_sharding": "sharded" if "fsdp_config" in changes else "auto",
    }
    changes = {"max_duration": "3ba", "device_train_microbatch_size": 2, **changes}
    if name == "finetuning":
        model = hf(home["student"], **model)
    if device == "meta":  # whose weights are drawn where they are cut
        changes |= {"optimizer": STILL, "max_duration": "1ba"}
    trainer = run(recipe(home["tokenizer"], model, loader, distillation, **changes))
    values = {name: logged(trainer, f"loss/train/{name}") for name in ("kd", "total")}
    return values | ({"weights": whole(trainer.state.model)} if device == "meta" else {})


def whole(model):
    """The student's weights, gathered, under the names that no FSDP has changed."""
    if not any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in named(model)}
    with FullyShardedDataParallel.summon_full_params(model):
        return {k.replace("_fsdp_wrapped_module.", ""): v.clone() for k, v in named(model)}


def named(model):
    return [(name, weight.detach()) for name, weight in model.named_parameters()]


_to_empty = nn.Module.to_empty


def on_the_cpu(module, *, device, recurse=True):
    """What ``to_empty`` is where Composer names CUDA, which it does for any weights on meta."""
    return _to_empty(module, device=torch.device("cpu"), recurse=recurse)


def main(home, folder):
    """Save what each run logs as ``NAME.RANK.pt``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = {
        f"{kind} {version}": (kind, version)
        for kind, (*_, versions) in KINDS.items()
        for version in versions
    }
    for name, (kind, version) in runs.items():
        os.environ["FSDP_VERSION"] = version  # what Composer reads a mapping's fsdp_config as
        cut = {} if version == "0" else {"fsdp_config": FSDP}
        try:
            # Composer's FSDP1 asks CUDA alone for a device
            cpu = mock.patch("torch.cuda.current_device", return_value=torch.device("cpu"))
            with cpu, mock.patch.object(nn.Module, "to_empty", on_the_cpu):
                result = distilled(home, kind, **cut)
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{dist.get_global_rank()}.pt")
        dist.barrier()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
