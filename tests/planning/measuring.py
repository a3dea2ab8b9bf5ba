"""The peak of memory of a real run, as torch's profiler counts what the allocator gives."""

from dataclasses import replace

import torch
import transformers
from composer import Trainer
from composer.models import HuggingFaceModel
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

from composer_distill import CachedTeacher, Distillation, KLDivergence, cache_teacher
from composer_distill.losses import FusedLinearKL
from composer_distill.planning.memory import Plan
from composer_distill.planning.shapes import Shape


def model(shape, seed=0):
    """Return transformers' model of a shape, without dropout."""
    torch.manual_seed(seed)
    if shape.gated:
        config = transformers.LlamaConfig(
            vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.inner,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads or shape.heads, max_position_embeddings=64,
            tie_word_embeddings=shape.tied,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(
        vocab_size=shape.vocab, n_positions=shape.positions, n_embd=shape.hidden,
        n_layer=shape.layers, n_head=shape.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


class Autocast(HuggingFaceModel):
    """A student under autocast, which Composer has for GPUs alone."""

    def forward(self, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(batch)


def rows(plan, batches=2):
    """Return texts, of which the first positions carry no loss."""
    generator = torch.Generator().manual_seed(0)
    n = plan.rows * plan.microbatches * batches
    ids = torch.randint(3, plan.student.vocab, (n, plan.length), generator=generator)
    labels = ids.masked_fill(torch.arange(plan.length) < plan.length * (1 - plan.kept), -100)
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": t}
        for i, t in zip(ids, labels, strict=True)
    ]


def teacher_of(plan):
    """Return the teacher's model, in the type that the plan says."""
    made = HuggingFaceModel(model(plan.teacher, 1))
    return made.bfloat16() if plan.teacher_bytes == 2 else made


def measured_peak(plan, folder):
    """Return the most bytes that lived at once while a plan's student was made and trained."""
    data = DataLoader(rows(plan), batch_size=plan.rows * plan.microbatches)
    if plan.layout == "cached":
        cache_teacher(teacher_of(plan), data, folder, samples=16, progress_bar=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        bare = model(plan.student)
        if plan.precision == "bf16":
            bare.bfloat16()
        if plan.checkpointing:
            bare.gradient_checkpointing_enable({"use_reentrant": False})
        student = (Autocast if plan.precision == "amp_bf16" else HuggingFaceModel)(bare)
        teacher = CachedTeacher(folder) if plan.layout == "cached" else teacher_of(plan)
        trainer = Trainer(
            model=student,
            train_dataloader=data,
            max_duration="2ba",
            optimizers=torch.optim.AdamW(student.parameters(), lr=1e-3, foreach=True),
            algorithms=[
                Distillation(teacher, FusedLinearKL() if plan.fused else KLDivergence(1.0))
            ],
            device_train_microbatch_size=plan.rows,
            progress_bar=False,
        )
        trainer.fit()
    trainer.close()
    changes = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for change in sorted(changes, key=lambda event: event.start_ns()):
        now += change.nbytes()
        most = max(most, now)
    return most


LLAMA = Shape(layers=2, hidden=64, vocab=8000, heads=4, intermediate=128)
TEACHER = replace(LLAMA, layers=3, hidden=96, intermediate=256)
SMALL = Plan(
    LLAMA, TEACHER, "whole", 1, 4, 64, precision="fp32", teacher_bytes=4, chunk=2**17
)  # fmt: skip
