"""Distil a causal language model where the student has little text.

The text is CPython's own documentation, ``pydoc_data.topics``, which every Python carries, read
character by character; whole topics are held out. The teacher reads all the rest. The student sees
60,000 characters of it, twice from the same initial weights and in the same order: once alone,
once learning from the teacher's distribution over the next character.

    pip install '.[nlp]'  # in a clone of the repository
    python docs/examples/causal_language_model.py

With Hugging Face models of your own, ``make_model`` becomes ``HuggingFaceModel(model, tokenizer)``.
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

from composer_distill import Distillation, KLDivergence

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
    """Train a model in place on windows of a text, and return the CPU seconds that it took."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - CONTEXT, (steps * 32,), generator=generator)
    return fit(model, Windows(text, starts), seed, distillation)


def fit(
    model: HuggingFaceModel,
    windows: Dataset,
    seed: int,
    distillation: Distillation | None = None,
) -> float:
    """Train a model in place, once over all windows, and return the CPU seconds that it took."""
    loader = DataLoader(windows, batch_size=32)
    trainer = Trainer(
        model=model,
        train_dataloader=loader,
        max_duration=f"{len(loader)}ba",
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
    """Train the teacher, then the student alone and distilled."""
    parser = argparse.ArgumentParser(description="Distil a causal language model.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--fast", action="store_true", help="too short to be a result")
    given = parser.parse_args(arguments)
    teacher_steps, steps = (30, 30) if given.fast else (800, 600)
    text, held_out, vocabulary = load_text()
    little = text[:60_000]

    def row(name: str, model: HuggingFaceModel, seconds: float) -> None:
        print(f"{name:<20} {nats(model, held_out):.3f} nats a character  {seconds:6.1f} CPU s")

    width = 32 if given.fast else 128
    teacher = make_model(vocabulary, layers=3, width=width, seed=0)
    row("teacher", teacher, train(teacher, text, teacher_steps, seed=0))

    # Temperature 1 and no weight on the student's own loss, as is usual for language models
    distillation = Distillation(
        teachers=teacher,
        kd_loss_fn=KLDivergence(temperature=1.0),
        kd_loss_weight=1.0,
        org_loss_weight=0.0,
    )
    alone = make_model(vocabulary, layers=2, width=48, seed=given.seed)
    row("student alone", alone, train(alone, little, steps, given.seed))
    distilled = make_model(vocabulary, layers=2, width=48, seed=given.seed)
    seconds = train(distilled, little, steps, given.seed, distillation)
    row("student distilled", distilled, seconds)


if __name__ == "__main__":
    main()
