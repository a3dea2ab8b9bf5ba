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

from tests.foundry.test_models import LOSS, hf
from tests.foundry.world import MPT, finetuning, logged, recipe, run, text

FSDP = {"sharding_strategy": "FULL_SHARD", "mixed_precision": "DEFAULT"}
KINDS = {
    "mpt": ("text", MPT),
    "hf": ("finetuning", None),
    "mixed": ("text", MPT | {"init_device": "mixed"}),
}
"""The loader and the student of each run."""


def distilled(home, kind, **changes):
    """Return what a run logs: two teachers, one cut with the student where that is cut."""
    name, model = KINDS[kind]
    loader = text(home["rows"]) if name == "text" else finetuning(home["pairs"])
    teachers = [
        {"checkpoint": home["mpt"], "model": MPT | {"n_layers": 2}},
        {"pretrained_model_name_or_path": home["teacher"]},
    ]
    distillation = {
        "teachers": teachers,
        "kd_loss_fn": LOSS,
        "teacher_sharding": "sharded" if "fsdp_config" in changes else "auto",
    }
    changes = {"max_duration": "3ba", "device_train_microbatch_size": 2, **changes}
    model = hf(home["student"]) if model is None else model
    trainer = run(recipe(home["tokenizer"], model, loader, distillation, **changes))
    return {name: logged(trainer, f"loss/train/{name}") for name in ("kd", "total")}


def main(home, folder):
    """Save what each run logs as ``NAME.RANK.pt``."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    runs = {
        f"{kind} {version}": (kind, version)
        for kind, versions in {"mpt": "012", "hf": "012", "mixed": "2"}.items()
        for version in versions
    }
    for name, (kind, version) in runs.items():
        os.environ["FSDP_VERSION"] = version  # what Composer reads a mapping's fsdp_config as
        cut = {} if version == "0" else {"fsdp_config": FSDP}
        try:
            # Composer's FSDP1 asks CUDA alone for a device
            with mock.patch("torch.cuda.current_device", return_value=torch.device("cpu")):
                result = distilled(home, kind, **cut)
        except Exception:
            result = {"error": traceback.format_exc()}
        torch.save(result, folder / f"{name}.{dist.get_global_rank()}.pt")
        dist.barrier()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))
