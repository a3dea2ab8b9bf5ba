"""Small students that write, their prompts, and what they should write and train, by hand."""

from typing import Any

import torch
import transformers
from composer.models import HuggingFaceModel
from torch import Tensor
from torch.utils.data import DataLoader

VOCAB, WIDTH, CONTEXT, PAD, EOS = 13, 16, 24, 0, 2


def gpt2(**config: Any) -> transformers.PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=1, n_head=2,
            bos_token_id=EOS, eos_token_id=EOS, loss_type="ForCausalLM",
            **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **config},
        )
    )  # fmt: skip


def llama(**config: Any) -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=CONTEXT, eos_token_id=EOS,
            pad_token_id=PAD, tie_word_embeddings=True, **config,
        )
    )  # fmt: skip


def t5(**config: Any) -> transformers.PreTrainedModel:
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
            dropout_rate=0.0, decoder_start_token_id=PAD, pad_token_id=PAD, eos_token_id=EOS,
            **config,
        )
    )  # fmt: skip


KINDS = {"gpt2": gpt2, "llama": llama, "t5": t5}


def student(kind: str = "gpt2", seed: int = 0, **config: Any) -> HuggingFaceModel:
    """Return a float64 model of random weights, sharp enough that its words are not all alike."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = KINDS[kind](**config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6.0 if kind == "gpt2" else 3.0)
    return HuggingFaceModel(made)


def batches(n: int = 2, size: int = 4, length: int = 8, kind: str = "gpt2") -> list[dict]:
    """Return batches whose prompts are of 1 to 5 tokens, padded on the right."""
    made = []
    for index in range(n):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, VOCAB, (size, length), generator=generator)
        ends = torch.randint(6, length + 1, (size, 1), generator=generator)
        starts = 1 + (torch.randperm(size, generator=generator)[:, None] % 5)
        places = torch.arange(length).expand(size, length)
        attended = (places < ends).long()
        ids = ids.masked_fill(attended == 0, PAD)
        labels = ids.masked_fill((attended == 0) | (places < starts), -100)
        if kind == "t5":
            labels = torch.randint(3, VOCAB, (size, 5), generator=generator)
        made.append({"input_ids": ids, "attention_mask": attended, "labels": labels})
    return made


def loader(data: list[dict]) -> DataLoader:
    """Return a loader that gives whole batches as they are."""
    rows = [
        {k: v[i] for k, v in batch.items()} for batch in data for i in range(len(batch["labels"]))
    ]
    return DataLoader(rows, batch_size=len(data[0]["labels"]))


def prompts_by_hand(batch: dict) -> list[list[int]]:
    found = []
    for ids, mask, labels in zip(
        batch["input_ids"].tolist(),
        batch["attention_mask"].tolist(),
        batch["labels"].tolist(),
        strict=True,
    ):
        row = []
        for token, attended, label in zip(ids, mask, labels, strict=True):
            if attended and label != -100 and row:
                break
            if attended:
                row.append(token)
                if label != -100:
                    break
        found.append(row)
    return found


@torch.no_grad()
def write_by_hand(
    model: HuggingFaceModel,
    prompts: list[list[int]],
    seed: int,
    n: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    eos: int | None = EOS,
) -> list[list[int]]:
    """Sample continuations without padding, without a cache, one row after the other.

    transformers draws one number a row at each step, rows that have ended included.
    """
    generator = torch.Generator().manual_seed(seed)
    inner, encoder_decoder = model.model.eval(), model.config.is_encoder_decoder
    written: list[list[int]] = [[] for _ in prompts]
    done = [False] * len(prompts)
    for _ in range(n):
        rows = []
        for prompt, own in zip(prompts, written, strict=True):
            if encoder_decoder:
                start = torch.tensor([[PAD, *own]])
                out = inner(input_ids=torch.tensor([prompt]), decoder_input_ids=start)
            else:
                out = inner(input_ids=torch.tensor([[*prompt, *own]]))
            rows.append(out.logits[0, -1].float())
        logits = torch.stack(rows)
        if temperature == 0.0:
            drawn = logits.argmax(-1)
        else:
            probabilities = nucleus((logits / temperature).softmax(-1), top_p)
            drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
        for row, token in enumerate(drawn.tolist()):
            if not done[row]:
                written[row].append(token)
                done[row] = token == eos
        if all(done):
            break
    return written


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens until they hold ``top_p``, the one that crosses it included."""
    kept = torch.zeros_like(probabilities)
    for row, values in enumerate(probabilities):
        held = 0.0
        for token in values.argsort(descending=True).tolist():
            if held >= top_p:
                break
            kept[row, token] = values[token]
            held += float(values[token])
    return kept / kept.sum(-1, keepdim=True)
