"""Batches with another text in them: of the same kind, and with nothing of the old text."""

from collections.abc import Mapping

import pytest
import torch
from on_policy.by_hand import batches, student
from transformers import BatchEncoding

from composer_distill.on_policy.student import writer_of
from composer_distill.on_policy.writing import prompts_of, with_text

TEXT = {
    "input_ids": torch.tensor([[3, 4, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1]]),
    "labels": torch.tensor([[-100, 4, 2]]),
}


@pytest.mark.parametrize("kind", [dict, BatchEncoding])
def test_the_kind_of_a_batch_and_the_types_of_its_entries_stay(kind):
    given = {
        "input_ids": torch.ones(1, 5, dtype=torch.int32),
        "attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "labels": torch.ones(1, 5, dtype=torch.int64),
        "weights": torch.ones(1, 5),
        "name": ["a"],
    }
    batch = kind(given)
    made = with_text(batch, TEXT)
    assert type(made) is kind
    assert isinstance(made, Mapping)
    assert {name: value.dtype for name, value in made.items() if name != "name"} == {
        "input_ids": torch.int32,
        "attention_mask": torch.bool,
        "labels": torch.int64,
    }
    assert made["name"] == ["a"]
    assert made["labels"].tolist() == TEXT["labels"].tolist()
    assert dict(batch).keys() == given.keys()
    assert all(batch[name] is value for name, value in given.items())


def test_a_decoders_old_inputs_go():
    (batch,) = batches(1, kind="t5")
    batch["decoder_input_ids"] = batch["labels"].clamp(min=0)
    batch["decoder_attention_mask"] = torch.ones_like(batch["labels"])
    writer = writer_of(student("t5"), writes=True)
    prompts = prompts_of(batch, writer, 4, None)
    assert torch.equal(prompts.ids, batch["input_ids"])
    assert torch.equal(prompts.attention_mask, batch["attention_mask"])
    made = with_text(batch, {**TEXT, "input_ids": prompts.ids})
    assert made.keys() == {"input_ids", "attention_mask", "labels"}


def test_what_is_known_of_a_student():
    gpt2, llama, t5 = (writer_of(student(kind), writes=True) for kind in ("gpt2", "llama", "t5"))
    assert (gpt2.ends, gpt2.pad, gpt2.context, gpt2.encoder_decoder) == ((2,), 2, 24, False)
    assert (llama.ends, llama.pad, llama.context, llama.encoder_decoder) == ((2,), 0, 24, False)
    assert (t5.ends, t5.pad, t5.context, t5.encoder_decoder) == ((2,), 0, None, True)
    several = student()
    several.model.generation_config.eos_token_id = [7, 2]
    assert writer_of(several, writes=True).ends == (2, 7)
    unknown = writer_of(torch.nn.Linear(2, 2), writes=False)
    assert (unknown.ends, unknown.pad, unknown.context, unknown.reads) == ((), 0, None, None)
