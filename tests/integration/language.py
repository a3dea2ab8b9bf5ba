"""Tiny language models of each kind, ragged batches, and the loss by hand, for the tests."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from composer.core import DataSpec
from composer.models import ComposerModel, HuggingFaceModel
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

VOCAB, WIDTH, LENGTH, PAD, MASK = 23, 16, 8, 2, 3  # PAD is the end-of-sequence token as well

_BERT = {
    "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": LENGTH,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip

Batches = list[dict[str, Tensor]]


def causal(vocab: int = VOCAB, **config: Any) -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=vocab, n_positions=LENGTH, n_embd=WIDTH, n_layer=1, n_head=2,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=PAD, eos_token_id=PAD,
            loss_type="ForCausalLM", **config,
        )
    )  # fmt: skip


def rotary(vocab: int = VOCAB, **config: Any) -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=LENGTH, **config,
        )
    )  # fmt: skip


def masked(vocab: int = VOCAB, **config: Any) -> transformers.PreTrainedModel:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(vocab_size=vocab, **_BERT, **config)
    )


def tokens(classes: int = 5, **config: Any) -> transformers.PreTrainedModel:
    return transformers.BertForTokenClassification(
        transformers.BertConfig(vocab_size=VOCAB, num_labels=classes, **_BERT, **config)
    )


def sequences(classes: int = 5, **config: Any) -> transformers.PreTrainedModel:
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=VOCAB, num_labels=classes, **_BERT, **config)
    )


def encoder_decoder(vocab: int = VOCAB, **config: Any) -> transformers.PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=vocab, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=PAD, **config,
        )
    )  # fmt: skip


KINDS: dict[str, Callable[..., transformers.PreTrainedModel]] = {
    "causal": causal,
    "rotary": rotary,
    "masked": masked,
    "tokens": tokens,
    "sequences": sequences,
    "encoder_decoder": encoder_decoder,
}


def model(kind: str, seed: int, *args: Any, **config: Any) -> HuggingFaceModel:
    """Return a float64 model of random weights, sharp enough that a wrong distance shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = KINDS[kind](*args, **config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0)
    return HuggingFaceModel(made)


def lengths(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, LENGTH + 1, (size,), generator=generator)


def batches(kind: str, *, n: int = 2, size: int = 8, side: str = "right", seed: int = 0) -> Batches:
    """Return batches of ragged length, padded on a side with the end-of-sequence token."""
    made = []
    for index in range(n):
        generator = torch.Generator().manual_seed(100 * seed + index)
        ids = torch.randint(4, VOCAB, (size, LENGTH), generator=generator)
        steps = torch.arange(LENGTH).expand(size, LENGTH)
        steps = steps if side == "right" else steps.flip(-1)
        attention = (steps < lengths(size, 10 * seed + index)[:, None]).long()
        ids[:, 3] = PAD  # a real end of a sequence in the middle
        ids = ids.masked_fill(attention == 0, PAD)
        batch = {"input_ids": ids, "attention_mask": attention}
        if kind in ("causal", "rotary"):
            batch["labels"] = ids.masked_fill(attention == 0, -100)
        elif kind == "masked":
            chosen = (torch.rand(ids.shape, generator=generator) < 0.4) & attention.bool()
            chosen[:, 1] = True
            batch["labels"] = ids.masked_fill(~chosen, -100)
            batch["input_ids"] = ids.masked_fill(chosen, MASK)
        elif kind == "tokens":
            labels = torch.randint(0, 5, ids.shape, generator=generator)
            batch["labels"] = labels.masked_fill(attention == 0, -100)
        elif kind == "sequences":
            batch["labels"] = torch.randint(0, 5, (size,), generator=generator)
        else:
            targets = torch.randint(4, VOCAB, (size, LENGTH), generator=generator)
            target_lengths = lengths(size, 50 + index)
            ends = torch.arange(LENGTH) >= target_lengths[:, None]
            batch["labels"] = targets.masked_fill(ends, -100)
        made.append(batch)
    return made


def kept_by_hand(kind: str, batch: dict[str, Tensor]) -> Tensor | None:
    """Return the positions that the default should keep, written apart from the package."""
    if kind == "sequences":
        return None
    if kind in ("masked", "tokens"):
        return batch["attention_mask"] == 1
    labels = batch["labels"]
    if kind == "encoder_decoder":
        return labels != -100
    kept = torch.zeros(labels.shape, dtype=torch.bool)
    for row in range(labels.shape[0]):
        for column in range(labels.shape[1] - 1):
            kept[row, column] = labels[row, column + 1] != -100
    return kept


def logits_of(model: HuggingFaceModel, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval().model(**batch, return_dict=True).logits


def kl_by_hand(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL of rows at temperature 1."""
    p = teacher.softmax(-1)
    return (p * (p.log() - student.log_softmax(-1))).sum(-1).mean()


def loader(data: Batches) -> DataLoader:
    """Return a loader that gives whole batches as they are."""
    rows = [
        {key: value[index] for key, value in batch.items()}
        for batch in data
        for index in range(len(batch["input_ids"]))
    ]
    return DataLoader(rows, batch_size=len(data[0]["input_ids"]))


def counted(data: Batches, count: Callable[[dict[str, Tensor]], int]) -> DataSpec:
    """Return the loader with the number of tokens that carry a loss."""
    return DataSpec(
        loader(data),
        get_num_tokens_in_batch=lambda batch: {"total": 1, "loss_generating": count(batch)},
    )


class Counts(ComposerModel):
    """A causal model of LLM Foundry's kind: its own loss, 0 where nothing is labelled."""

    def __init__(self, seed):
        super().__init__()
        self.lm = model("causal", seed).model

    def forward(self, batch):
        return self.lm(batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def loss(self, outputs, batch):
        labels = batch["labels"][:, 1:].flatten()
        rows = outputs[:, :-1].flatten(0, 1)
        summed = F.cross_entropy(rows, labels, ignore_index=-100, reduction="sum")
        return summed / (labels != -100).sum().clamp(min=1)
