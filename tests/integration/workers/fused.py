"""The fused loss with students cut over two processes. Started by ``test_fused_processes.py``."""

import copy
import sys
from pathlib import Path
from unittest import mock

import torch
from composer.core import DataSpec
from composer.models import ComposerModel
from composer.utils import FSDP2Config, FSDPConfig, dist
from integration import language
from integration.harness import entries_of, trainer_for
from integration.workers.running import run_scenarios
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence
from composer_distill.losses import FusedLinearKL

SIZE, BATCHES = 8, 3
TIES = {"tied": "causal", "untied": "rotary"}


class Shared(nn.Embedding):
    """An embedding that is its model's head too, as MPT's is: called with a second argument."""

    def forward(self, input, unembed=False):
        return F.linear(input, self.weight) if unembed else super().forward(input)


class Mpt(ComposerModel):
    """A language model with MPT's kind of head, scale and cap."""

    class Core(nn.Module):
        def __init__(self, scale, cap):
            super().__init__()
            self.wte = Shared(language.VOCAB, language.WIDTH)
            self.block = nn.Sequential(nn.Linear(language.WIDTH, language.WIDTH), nn.Tanh())
            self.config = type("Config", (), {})()
            self.config.logit_scale, self.config.final_logit_softcapping = scale, cap
            self.config.d_model = language.WIDTH

        def get_output_embeddings(self):
            return self.wte

        def forward(self, ids):
            logits = self.wte(self.block(self.wte(ids)), True)
            scale, cap = self.config.logit_scale, self.config.final_logit_softcapping
            if scale is not None:
                logits = logits * (language.WIDTH**-0.5 if isinstance(scale, str) else scale)
            return logits if cap is None else cap * torch.tanh(logits / cap)

    def __init__(self, seed, scale=None, cap=None):
        super().__init__()
        torch.manual_seed(seed)
        self.model = self.Core(scale, cap).double()
        with torch.no_grad():
            self.model.wte.weight.mul_(3.0)

    def forward(self, batch):
        return self.model(batch["input_ids"])

    def loss(self, outputs, batch):
        labels = batch["labels"][:, 1:].flatten()
        summed = F.cross_entropy(
            outputs[:, :-1].flatten(0, 1), labels, ignore_index=-100, reduction="sum"
        )
        return summed / (labels != -100).sum().clamp(min=1)


def share():
    """This rank's part of a few batches."""
    batches = language.batches("causal", n=BATCHES, size=SIZE)
    rows = [{k: v[i] for k, v in batch.items()} for batch in batches for i in range(SIZE)]
    sampler = dist.get_sampler(rows, shuffle=False)
    loader = DataLoader(rows, batch_size=SIZE // dist.get_world_size(), sampler=sampler)
    return DataSpec(
        loader,
        get_num_tokens_in_batch=lambda batch: {
            "total": 1,
            "loss_generating": int((batch["labels"][:, 1:] != -100).sum()),
        },
    )


def whole(value):
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()


def whole_weights(model):
    """The student's weights, gathered, under the names that no FSDP has changed."""
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        with FullyShardedDataParallel.summon_full_params(model):
            return {k.replace("_fsdp_wrapped_module.", ""): whole(v) for k, v in named(model)}
    return {name.removeprefix("module."): whole(value) for name, value in named(model)}


def named(model):
    return list(model.named_parameters())


def train(student, teacher, loss, config=None, microbatch=2, **options):
    """Return the trained weights and the log."""
    arguments = {"kd_loss_weight": 0.7, "org_loss_weight": 0.3, **options}
    trainer = trainer_for(
        student,
        Distillation(copy.deepcopy(teacher), loss, **arguments),
        train_dataloader=share(),
        optimizers=torch.optim.SGD(student.parameters(), lr=0.02, momentum=0.9),
        device_train_microbatch_size=microbatch,
        accumulate_train_batch_on_tokens=True,
        parallelism_config=None if config is None else {"fsdp": config},
    )
    trainer.fit()
    kinds = (FSDPModule, FullyShardedDataParallel)
    units = sum(isinstance(module, kinds) for module in trainer.state.model.modules())
    found = {"weights": whole_weights(student), "log": entries_of(trainer), "units": units}
    trainer.close()
    return found


def unit(model, *parts):
    """Mark parts of a model as units of FSDP of their own."""
    for part in parts:
        part._fsdp_wrap = True
    return model


def students():
    """Makers of students, each with a teacher: how its head lies among the units of FSDP."""

    def blocks(kind):
        made = language.model(kind, 1)
        inner = made.model.transformer.h if kind == "causal" else made.model.model.layers
        return unit(made, *inner)

    def head():
        made = blocks("rotary")
        return unit(made, made.model.lm_head)

    return {
        "tied": (lambda: language.model("causal", 1), language.model("causal", 2)),
        "tied, blocks cut": (lambda: blocks("causal"), language.model("causal", 2)),
        "untied": (lambda: language.model("rotary", 1), language.model("causal", 2)),
        "head cut by itself": (head, language.model("rotary", 2)),
        "teacher cut": (lambda: blocks("rotary"), language.model("causal", 2)),
        "shared": (lambda: Mpt(1, "inv_sqrt_d_model", 2.0), Mpt(2, 0.7, 3.0)),
    }


def trained(loss, config=None):
    """Train every student, cut where there is a maker of FSDP's configuration."""
    results = {}
    for name, (make, teacher) in students().items():
        cut = config is not None and name == "teacher cut" and isinstance(loss, FusedLinearKL)
        options = {"teacher_sharding": "sharded"} if cut else {}
        results[name] = train(make(), teacher, loss, config and config(), **options)
    return results


def replicated(folder):
    """The logits' own loss, of whole students."""
    return trained(KLDivergence(2.0))


def fsdp2(folder):
    return trained(FusedLinearKL(2.0), FSDP2Config)


def fsdp2_of_logits(folder):
    """Its own reference: over gloo FSDP2 adds gradients up where all others take the mean."""
    return trained(KLDivergence(2.0), FSDP2Config)


def fsdp1(folder):
    """Composer's own wrapping, which asks CUDA alone for a device."""
    with mock.patch("torch.cuda.current_device", return_value=torch.device("cpu")):
        return trained(FusedLinearKL(2.0), FSDPConfig)


SCENARIOS = [replicated, fsdp2, fsdp2_of_logits, fsdp1]


IGNORED = ("The _fsdp_wrap attribute will be removed",)


if __name__ == "__main__":
    run_scenarios(SCENARIOS, Path(sys.argv[1]), IGNORED)
