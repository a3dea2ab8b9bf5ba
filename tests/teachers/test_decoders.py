"""A decoder's inputs against those that the model's own forward makes of its labels."""

import pytest
import torch
from torch import nn

from composer_distill.teachers.decoders import decoder_inputs
from composer_distill.teachers.outputs import call_model

transformers = pytest.importorskip("transformers")
LABELS = torch.tensor([[5, 6, 7, 2, -100, -100], [8, 9, 2, -100, -100, -100]])
TOKENS = {"pad_token_id": 1, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
BART = {
    "vocab_size": 50, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "dropout": 0.0, "attention_dropout": 0.0, **TOKENS,
}  # fmt: skip
T5 = {
    "vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    "dropout_rate": 0.0, **TOKENS,
}  # fmt: skip
SOUND = {"max_source_positions": 10, "max_target_positions": 12}
TEXT = {"input_ids": torch.randint(4, 50, (2, 6)), "attention_mask": torch.ones(2, 6).long()}


def whisper():
    config = transformers.WhisperConfig(
        num_mel_bins=8, suppress_tokens=None, begin_suppress_tokens=None, **SOUND, **BART
    )
    return transformers.WhisperForConditionalGeneration(config), {
        "input_features": torch.randn(2, 8, 20)
    }


def moonshine():
    config = transformers.MoonshineConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
        **TOKENS,
    )  # fmt: skip
    return transformers.MoonshineForConditionalGeneration(config), {
        "input_values": torch.randn(2, 4000)
    }


def speech():
    config = transformers.Speech2TextConfig(
        input_feat_per_channel=8, conv_channels=8, **SOUND, **BART
    )
    return transformers.Speech2TextForConditionalGeneration(config), {
        "input_features": torch.randn(2, 20, 8)
    }


def pictures():
    """Pix2Struct, whose start token its whole configuration must name."""
    sides = {"hidden_size": 16, "d_kv": 8, "d_ff": 16, "num_heads": 2, "num_layers": 1}
    seeing = {"patch_embed_hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Pix2StructConfig(
        text_config={"vocab_size": 50, "dropout_rate": 0.0, **sides, **TOKENS},
        vision_config={**sides, **seeing, "seq_len": 16, "dropout_rate": 0.0},
        **TOKENS,
    )
    return transformers.Pix2StructForConditionalGeneration(config), {
        "flattened_patches": torch.rand(2, 5, 2 + 16)
    }


def documents():
    model = transformers.UdopForConditionalGeneration(
        transformers.UdopConfig(**T5, max_2d_position_embeddings=32, image_size=32, patch_size=16)
    )
    return model, {**TEXT, "bbox": torch.rand(2, 6, 4), "pixel_values": torch.randn(2, 3, 32, 32)}


def text(name, settings, **more):
    def build():
        config = getattr(transformers, f"{name}Config")(**settings, **more)
        kind = {"Marian": "MarianMTModel"}.get(name, f"{name}ForConditionalGeneration")
        return getattr(transformers, kind)(config), TEXT

    return build


FAMILIES = {
    "Whisper": whisper,
    "Moonshine": moonshine,
    "Speech2Text": speech,
    "Pix2Struct": pictures,
    "Udop": documents,
    "NLLB": text("M2M100", BART, max_position_embeddings=16),
    "Blenderbot": text("Blenderbot", BART, max_position_embeddings=16),
    "Bart": text("Bart", BART, max_position_embeddings=16),
    "MBart, which begins with the last token": text("MBart", BART, max_position_embeddings=16),
    "T5": text("T5", T5),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_answers_as_with_its_labels(name):
    model, inputs = FAMILIES[name]()
    batch = {**inputs, "labels": LABELS.clone()}
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        found, counted = call_model(model, batch).logits, LABELS != -100
        assert torch.equal(found[counted], expected[counted])
        if name != "Pix2Struct":  # which also hides padding from what is padding itself
            assert torch.equal(found, expected)
        given = {**batch, "decoder_input_ids": LABELS.clamp(min=1)}
        assert not torch.equal(call_model(model, given).logits, expected)
    assert torch.equal(batch["labels"], LABELS)


def test_a_wrapped_model_is_found():
    class Wrapper(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

    model, _ = FAMILIES["NLLB"]()
    made = decoder_inputs(Wrapper(model), LABELS)
    assert made.tolist() == [[3, 5, 6, 7, 2, 1], [3, 8, 9, 2, 1, 1]]


def test_a_model_that_is_not_known_gets_none():
    assert decoder_inputs(nn.Linear(2, 2), LABELS) is None


def test_labels_of_samples_are_no_tokens():
    config = transformers.BartConfig(**BART, max_position_embeddings=16)
    model = transformers.BartForSequenceClassification(config).eval()
    batch = {"input_ids": TEXT["input_ids"].index_fill(1, torch.tensor([5]), 2)}
    with torch.no_grad():
        expected = model(**batch).logits
        answer = call_model(model, {**batch, "labels": torch.tensor([0, 1])})
    assert torch.equal(answer.logits, expected)
