"""Make a small language model of a large one's layers, then distil it.

A GPT-2 of six layers reads CPython's own documentation, character by character. Four students of
two layers are then trained on the same batches for a few steps: with random first weights or with
the teacher's first and last layer, each alone and distilled by the logits.

    pip install '.[nlp]'  # in a clone of the repository
    python docs/examples/student_from_teacher.py
"""

import argparse
import pydoc_data.topics
import random
import time

import torch
import transformers
from composer import Trainer
from composer.models import HuggingFaceModel
from composer.optim import CosineAnnealingWithWarmupScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from composer_distill import Distillation, KLDivergence, student_from_teacher

CONTEXT = 64


def load_text() -> tuple[Tensor, Tensor, int]:
    """Return the ids to train on, those of held-out topics, and the number of characters."""
    topics = sorted(pydoc_data.topics.topics.values())
    random.Random(0).shuffle(topics)
    characters = sorted(set("".join(topics)))
    ids = {character: index for index, character in enumerate(characters)}
    held_out, train = "".join(topics[::10]), "".join(t for i, t in enumerate(topics) if i % 10)
    return (
        torch.tensor([ids[character] for character in train]),
        torch.tensor([ids[character] for character in held_out]),
        len(characters),
    )


class Windows(Dataset):
    """Windows of a text as a causal language model reads them."""

    def __init__(self, text: Tensor, starts: Tensor) -> None:
        self.windows = text[starts[:, None] + torch.arange(CONTEXT + 1)]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.windows[index]
        # Labels are not shifted: the model shifts them, and so does Distillation
        return {
            "input_ids": window,
            "attention_mask": torch.ones_like(window),
            "labels": window,
        }


def make_model(vocabulary: int, layers: int, width: int, seed: int) -> HuggingFaceModel:
    """Return a GPT-2 of random weights."""
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=CONTEXT + 1,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        loss_type="ForCausalLM",
    )
    return HuggingFaceModel(transformers.GPT2LMHeadModel(config))


def train(
    model: HuggingFaceModel,
    text: Tensor,
    steps: int,
    seed: int,
    distillation: Distillation | None = None,
) -> float:
    """Train a model in place, and return the CPU seconds that it took."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (steps * 32,), generator=generator)
    trainer = Trainer(
        model=model,
        train_dataloader=DataLoader(Windows(text, starts), batch_size=32),
        max_duration=f"{steps}ba",
        optimizers=torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01),
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup="20ba", alpha_f=0.1),
        algorithms=distillation,
        seed=seed,
        progress_bar=False,
    )
    start = time.process_time()
    trainer.fit()
    seconds = time.process_time() - start
    trainer.close()
    return seconds


@torch.no_grad()
def nats(model: HuggingFaceModel, text: Tensor) -> float:
    """Return the mean negative log-likelihood of a character in held-out text."""
    starts = torch.arange(0, len(text) - CONTEXT, CONTEXT)
    total, count = 0.0, 0
    for batch in DataLoader(Windows(text, starts), batch_size=128):
        labels = batch.pop("labels")[:, 1:]
        logits = model.eval()(batch).logits[:, :-1]
        total += F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").item()
        count += labels.numel()
    return total / count


def main(arguments: list[str] | None = None) -> None:
    """Train the teacher, then each student from random and from copied weights."""
    parser = argparse.ArgumentParser(description="Make a student of its teacher's layers.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="too short to be a result")
    given = parser.parse_args(arguments)
    teacher_steps, steps, width = (20, 5, 32) if given.fast else (800, 200, 64)
    text, held_out, vocabulary = load_text()

    def row(name: str, model: HuggingFaceModel, seconds: float) -> None:
        print(f"{name:<28} {nats(model, held_out):.3f} nats a character  {seconds:6.1f} CPU s")

    teacher = make_model(vocabulary, layers=6, width=width, seed=0)
    row("teacher", teacher, train(teacher, text, teacher_steps, seed=0))
    copied = HuggingFaceModel(student_from_teacher(teacher, layers=2))
    row("its two layers, untrained", copied, 0.0)
    for origin in ("random", "copied"):
        for distilled in (False, True):
            student = make_model(vocabulary, layers=2, width=width, seed=given.seed)
            if origin == "copied":
                student = HuggingFaceModel(student_from_teacher(teacher, layers=2))
            loss = KLDivergence(temperature=1.0)
            term = Distillation(teacher, loss, 1.0, org_loss_weight=0.0) if distilled else None
            seconds = train(student, text, steps, given.seed, term)
            row(f"{origin}, {'distilled' if distilled else 'alone'}", student, seconds)


if __name__ == "__main__":
    main()
