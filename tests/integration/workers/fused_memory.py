"""The memory of the fused loss and of the logits' own, with students cut over two processes.

Started by ``test_fused_memory.py``, small; larger, with chunks as they are, and told in MB::

    composer -n 2 tests/integration/workers/fused_memory.py FOLDER TEXTS LENGTH VOCABULARY
"""

import sys
from pathlib import Path
from unittest import mock

import torch
import transformers
from composer.models import HuggingFaceModel
from composer.utils import FSDP2Config, FSDPConfig, dist
from integration.harness import trainer_for
from integration.workers.running import run_scenarios
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence
from composer_distill.losses import FusedLinearKL, fused_linear_kl
from composer_distill.terms import own_loss

BATCHES = 2
SIZES = {"texts": 8, "length": 64, "vocabulary": 2000, "entries": 2**16}
"""Of one process; entries are those of a chunk."""
LOSSES = {"alone": None, "logits": KLDivergence, "fused": FusedLinearKL}


def model(seed, width, tied):
    """A Llama whose blocks are units of FSDP."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=SIZES["vocabulary"], hidden_size=width, intermediate_size=2 * width,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=SIZES["length"],
        tie_word_embeddings=tied,
    )  # fmt: skip
    made = transformers.LlamaForCausalLM(config)
    for block in made.model.layers:
        block._fsdp_wrap = True
    return HuggingFaceModel(made)


def rows():
    shape = (BATCHES * SIZES["texts"] * dist.get_world_size(), SIZES["length"])
    ids = torch.randint(3, SIZES["vocabulary"], shape, generator=torch.Generator().manual_seed(0))
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": i} for i in ids]


def allocations(profiled):
    """How many bytes came and went, in their order."""
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]


def measure(config, tied, loss):
    """Return the peak of a fit beyond what was there, and how many whole logits were made."""
    student, teacher, data = model(1, 32, tied), model(2, 48, tied), rows()
    trainer = trainer_for(
        student,
        [] if loss is None else Distillation(teacher, loss(1.0), teacher_sharding="sharded"),
        train_dataloader=DataLoader(data, SIZES["texts"], sampler=dist.get_sampler(data)),
        optimizers=torch.optim.AdamW(student.parameters(), lr=1e-3, foreach=True),
        parallelism_config={"fsdp": config()},
    )
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        trainer.fit()
    trainer.close()
    now = most = 0
    changes = allocations(profiled)
    for change in changes:
        now += change
        most = max(most, now)
    return {"peak": most, "whole": sum(change >= logits_bytes() for change in changes)}


def logits_bytes():
    """Of the logits at the positions that carry a loss, in float32."""
    return 4 * SIZES["texts"] * (SIZES["length"] - 1) * SIZES["vocabulary"]


def measured(config):
    """Return what is measured with every loss and both kinds of head."""
    module = sys.modules[fused_linear_kl.__module__]
    cuda = mock.patch("torch.cuda.current_device", return_value=torch.device("cpu"))
    chunks = mock.patch.object(module, "_ENTRIES", SIZES["entries"])
    with cuda, chunks, mock.patch.object(own_loss, "_CHUNK_ELEMENTS", SIZES["entries"]):
        return {
            head: {name: measure(config, head == "tied", loss) for name, loss in LOSSES.items()}
            for head in ("tied", "untied")
        }


def fsdp1(folder):
    return measured(FSDPConfig)


def fsdp2(folder):
    return measured(FSDP2Config)


IGNORED = ("The _fsdp_wrap attribute will be removed",)


if __name__ == "__main__":
    if sys.argv[2:]:
        texts, length, vocabulary = map(int, sys.argv[2:])
        SIZES = {"texts": texts, "length": length, "vocabulary": vocabulary, "entries": 2**23}
    run_scenarios([fsdp1, fsdp2], Path(sys.argv[1]), IGNORED)
    if sys.argv[2:] and dist.get_global_rank() == 0:
        print(f"whole logits: {logits_bytes() / 1e6:.0f} MB")
        for version in ("fsdp1", "fsdp2"):
            found = torch.load(Path(sys.argv[1]) / f"{version}.0.pt")
            for head, by_loss in found.items():
                print(
                    version,
                    head,
                    {
                        n: f"{v['peak'] / 1e6:.0f} MB, {v['whole']} whole"
                        for n, v in by_loss.items()
                    },
                )
