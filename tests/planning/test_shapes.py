"""Shapes from names, folders and fields, against what transformers builds."""

import json

import pytest
import transformers

from composer_distill.planning.shapes import SHAPES, Shape, read_shape

CONFIGS = {
    "llama": transformers.LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
    ),
    "llama, tied, wide heads": transformers.LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=160, num_hidden_layers=3,
        num_attention_heads=4, head_dim=32, tie_word_embeddings=True,
    ),
    "mistral": transformers.MistralConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2,
    ),
    "gpt2": transformers.GPT2Config(
        vocab_size=500, n_positions=32, n_embd=64, n_layer=3, n_head=4
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_has_as_many_parameters_as_its_model(name, tmp_path):
    config = CONFIGS[name]
    config.save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_config(config)
    parameters = sum(p.numel() for p in model.parameters())
    assert read_shape(str(tmp_path), "--student").parameters == parameters
    assert read_shape(str(tmp_path / "config.json"), "--student").parameters == parameters


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("1b", 1235814400), ("3b", 3212749824), ("8b", 8030261248), ("70b", 70553706496)],
)
def test_names_are_the_public_models(name, parameters):
    """As Llama 3.2 and 3.1 have, by their makers' model cards and files."""
    assert SHAPES[name].parameters == parameters


def test_fields():
    text = "layers=2, hidden=64,vocab=100,heads=4,gated=0,tied=1"
    expected = Shape(2, 64, 100, 4, gated=False, tied=True)
    assert read_shape(text, "--student") == expected
    assert expected.inner == 256


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("9b", "--student needs one of 1b, 3b, 8b, 70b, a folder with a config.json, or layers="),
        ("layers=2,hidden=64", "--student lacks vocab"),
        ("layers=2,width=64", "--student needs whole numbers for layers, hidden, vocab"),
        ("layers=2,hidden=-4,vocab=3", "got 'hidden=-4'"),
        ("layers=0,hidden=4,vocab=3", "--student lacks layers, or has 0 of them"),
    ],
)
def test_what_is_no_shape_is_told(text, told):
    with pytest.raises(ValueError, match=told):
        read_shape(text, "--student")


@pytest.mark.parametrize(("content", "told"), [("{", "is no JSON"), ("[]", "got a list")])
def test_what_is_no_configuration_is_told(content, told, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=told):
        read_shape(str(tmp_path), "--teacher")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "n_layer": 2}))
    with pytest.raises(ValueError, match="lacks hidden and vocab"):
        read_shape(str(tmp_path), "--teacher")
