"""What is read of Hugging Face models, against their own outputs."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_distill.terms.features.huggingface import read_layers
from composer_distill.terms.features.recorder import Recorder

IDS = torch.tensor([[3, 4, 5, 6, 7], [7, 6, 5, 1, 1]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def bert(attention="eager"):
    config = BertConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        attn_implementation=attention,
    )
    return BertForMaskedLM(config).eval()


def gpt2():
    config = GPT2Config(
        vocab_size=16, n_embd=8, n_layer=2, n_head=2, n_positions=8, attn_implementation="eager"
    )
    return GPT2LMHeadModel(config).eval()


def llama():
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
    )
    return LlamaForCausalLM(config).eval()


def heard(model, name):
    """Return features by name, and the model's output in that forward."""
    layers = read_layers(model, name, "output", "the student")
    recorder = Recorder("the student")
    recorder.listen(tap for layer in layers for tap in layer.taps)
    output = model(input_ids=IDS, attention_mask=MASK)
    recorder.stop()
    found = [layer.read(model, output, recorder, "the student") for layer in layers]
    return found[0] if len(found) == 1 else found, output


@pytest.mark.parametrize("make", [bert, gpt2])
@pytest.mark.parametrize("name", ["hidden_states.0", "hidden_states.2", "attentions.1"])
def test_entries_are_the_models_own_and_leave_its_output_as_it_was(make, name):
    model = make()
    kind, index = name.split(".")
    expected = model(input_ids=IDS, attention_mask=MASK, **{f"output_{kind}": True})
    value, output = heard(model, name)
    assert torch.equal(value, expected[kind][int(index)])
    assert kind not in output
    assert getattr(model.config, f"output_{kind}") is False
    assert torch.equal(output.logits, expected.logits)


def test_an_entry_that_the_user_asked_for_stays():
    model = bert()
    model.config.output_hidden_states = True
    value, output = heard(model, "hidden_states.1")
    assert value is output.hidden_states[1]
    assert model.config.output_hidden_states is True


def test_a_star_stands_for_each_layer():
    values, _ = heard(model := bert(), "hidden_states.*")
    expected = model(input_ids=IDS, attention_mask=MASK, output_hidden_states=True).hidden_states
    assert len(values) == 3
    assert all(torch.equal(a, b) for a, b in zip(values, expected[1:], strict=True))


@pytest.mark.parametrize("make", [bert, lambda: DistilBertModel(distilbert()).eval()])
def test_scores_make_the_models_own_attention(make):
    model = make()
    scores, _ = heard(model, "scores.1")
    attention, _ = heard(model, "attentions.1")
    masked = scores.masked_fill(MASK[:, None, None, :] == 0, -torch.inf)
    torch.testing.assert_close(masked.softmax(-1), attention)


def distilbert():
    return DistilBertConfig(
        vocab_size=16, dim=8, n_layers=2, n_heads=2, hidden_dim=16, attn_implementation="eager"
    )


def test_fused_projections_are_taken_apart():
    model = gpt2()
    (queries, keys, values), _ = heard(model, "attention.1")
    hidden, _ = heard(model, "hidden_states.1")
    block = model.transformer.h[1]
    q, k, v = block.attn.c_attn(block.ln_1(hidden)).chunk(3, -1)
    torch.testing.assert_close((queries, keys, values), (q, k, v))
    assert torch.equal(heard(model, "keys.1")[0], keys)


def test_shared_keys_are_narrower_than_queries():
    (queries, keys, values), _ = heard(llama(), "attention.0")
    assert queries.shape == (2, 5, 8)
    assert keys.shape == values.shape == (2, 5, 4)


def test_what_a_model_does_not_have_is_an_error():
    with pytest.raises(ValueError, match=r"attn_implementation='sdpa' never makes.*'eager'"):
        read_layers(bert("sdpa"), "attentions.1", "output", "the student")
    with pytest.raises(ValueError, match=r"no 'attentions.3': it has 3 layers, and attentions.2"):
        read_layers(bert(), "attentions.3", "output", "the student")
    with pytest.raises(ValueError, match="a model of type 'llama' does more with them"):
        read_layers(llama(), "scores.0", "output", "the student")
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="Name the modules themselves"):
        read_layers(t5, "queries.0", "output", "the student")
