"""Models that read images or sound beside words, built small, and what they are given."""

import torch
import transformers as hf

IMAGE, BEGIN, END = 60, 58, 59
_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
_TOWER = {**_SIZES, "num_hidden_layers": 4, "image_size": 16, "patch_size": 8}
_WORDS = {
    **{**_SIZES, "num_hidden_layers": 5, "vocab_size": 64, "max_position_embeddings": 128},
    **{"num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
_SHORT_TEXT = {**_WORDS, "max_position_embeddings": 16, "projection_size": 16}
_PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "num_heads": 2, "depth": 4}


def _llava(**settings):
    return hf.LlavaConfig(
        text_config={**_WORDS, "model_type": "llama"},
        vision_config={**_TOWER, "model_type": "clip_vision_model"},
        image_token_index=IMAGE,
        image_seq_length=4,
        **settings,
    )


def _blip_2(**settings):
    return hf.Blip2Config(
        text_config={
            **{"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 5},
            **{"num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 128},
            "word_embed_proj_dim": 16,
        },
        vision_config=_TOWER,
        qformer_config={**_SIZES, "encoder_hidden_size": 16, "num_hidden_layers": 4},
        num_query_tokens=4,
        image_token_index=IMAGE,
        **settings,
    )


def _qwen2_5_vl():
    vision = {**_PATCHES, "hidden_size": 16, "intermediate_size": 32, "out_hidden_size": 16}
    return hf.Qwen2_5_VLConfig(
        **_WORDS,  # as the checkpoints have it: in the whole configuration
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        vision_config={**vision, "window_size": 8, "fullatt_block_indexes": [1, 3]},
        **{"image_token_id": IMAGE, "video_token_id": 61},
        **{"vision_start_token_id": BEGIN, "vision_end_token_id": END},
    )


def _qwen2_audio():
    return hf.Qwen2AudioConfig(
        audio_config={
            **{"d_model": 16, "encoder_layers": 4, "encoder_attention_heads": 2},
            **{"encoder_ffn_dim": 32, "num_mel_bins": 8, "max_source_positions": 8},
        },
        text_config={**_WORDS, "model_type": "qwen2"},
        audio_token_index=IMAGE,
    )


CONFIGURATIONS = {
    "blip_2": _blip_2,
    "clip": lambda: hf.CLIPConfig(text_config=_SHORT_TEXT, vision_config=_TOWER, projection_dim=16),
    "gemma3": lambda: hf.Gemma3Config(
        text_config={**_WORDS, "head_dim": 8},
        vision_config=_TOWER,
        mm_tokens_per_image=4,
        **{"image_token_index": IMAGE, "boi_token_index": BEGIN, "eoi_token_index": END},
    ),
    "llava": _llava,
    "paligemma": lambda: hf.PaliGemmaConfig(
        text_config={**_WORDS, "model_type": "gemma", "head_dim": 8},
        vision_config={**_TOWER, "model_type": "siglip_vision_model", "projection_dim": 16},
        **{"image_token_index": IMAGE, "projection_dim": 16, "hidden_size": 16},
    ),
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_audio": _qwen2_audio,
    "siglip": lambda: hf.SiglipConfig(text_config=_SHORT_TEXT, vision_config=_TOWER),
}
CLASSES = {
    "blip_2": "Blip2ForConditionalGeneration",
    "clip": "CLIPModel",
    "gemma3": "Gemma3ForConditionalGeneration",
    "llava": "LlavaForConditionalGeneration",
    "paligemma": "PaliGemmaForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen2_audio": "Qwen2AudioForConditionalGeneration",
    "siglip": "SiglipModel",
}
# Each list of layers, and how the configuration counts it
LISTS = {
    "blip_2": {
        "language_model.model.decoder.layers": "text_config.num_hidden_layers",
        "vision_model.encoder.layers": "vision_config.num_hidden_layers",
    },
    "clip": {
        "text_model.encoder.layers": "text_config.num_hidden_layers",
        "vision_model.encoder.layers": "vision_config.num_hidden_layers",
    },
    "qwen2_5_vl": {
        "model.language_model.layers": "text_config.num_hidden_layers",
        "model.visual.blocks": "vision_config.depth",
    },
    "qwen2_audio": {
        "language_model.model.layers": "text_config.num_hidden_layers",
        "audio_tower.layers": "audio_config.encoder_layers",
    },
    "llava": {
        "model.language_model.layers": "text_config.num_hidden_layers",
        "model.vision_tower.vision_model.encoder.layers": "vision_config.num_hidden_layers",
    },
}
LISTS["siglip"] = LISTS["clip"]
LISTS["gemma3"] = LISTS["paligemma"] = LISTS["llava"]


def tiny(name, **settings):
    """Build the small model, in eval mode, its weights far from their first ones."""
    torch.manual_seed(0)
    model = getattr(hf, CLASSES[name])(CONFIGURATIONS[name](**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def inputs_of(name):
    """Two samples of eight words, and an image or sound in each."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 50, (2, 8), generator=generator)
    inputs = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    if name not in ("clip", "siglip"):
        words[:, 0], words[:, 1:5], words[:, 5] = BEGIN, IMAGE, END
    if name == "qwen2_5_vl":
        patches = torch.randn(32, 96, generator=generator)
        return {**inputs, "pixel_values": patches, "image_grid_thw": torch.tensor([[1, 4, 4]] * 2)}
    if name == "qwen2_audio":
        sound = torch.randn(2, 8, 16, generator=generator)
        mask = torch.ones(2, 16, dtype=torch.long)
        return {**inputs, "input_features": sound, "feature_attention_mask": mask}
    return {**inputs, "pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
