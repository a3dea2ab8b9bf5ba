"""Every causal, masked and sequence-to-sequence architecture of transformers, built small."""

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

WORDS = 64
LAYERS = 5
KINDS = {
    "causal": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "masked": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "seq2seq": modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
}
# What configurations call the same few things; each is given where it exists
_WIDTHS = "hidden_size d_model n_embd dim emb_dim embed_dim embedding_size word_embed_proj_dim"
_INNER = (
    "intermediate_size ffn_dim d_ff n_inner hidden_dim d_inner encoder_ffn_dim decoder_ffn_dim "
    "intermediate_size_mlp shared_expert_intermediate_size dim_ff ffn_hidden_size"
)
_COUNTS = (
    "num_hidden_layers n_layer n_layers num_layers num_decoder_layers encoder_layers "
    "decoder_layers num_encoder_layers"
)
_HEADS = (
    "num_attention_heads n_head n_heads num_heads encoder_attention_heads num_key_value_heads "
    "decoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"
)
_POSITIONS = "max_position_embeddings n_positions n_ctx max_seq_len"
_EXPERTS = "num_experts num_local_experts n_routed_experts"
SETTINGS = {
    **dict.fromkeys(_WIDTHS.split(), 16),
    **dict.fromkeys(_INNER.split(), 32),
    **dict.fromkeys(_COUNTS.split(), LAYERS),
    **dict.fromkeys(_HEADS.split(), 2),
    **dict.fromkeys(_POSITIONS.split(), 128),
    **dict.fromkeys(_EXPERTS.split(), 4),
    **dict.fromkeys(("vocab_size", "src_vocab_size", "tgt_vocab_size"), WORDS),
    **{"head_dim": 8, "d_kv": 8, "moe_intermediate_size": 16, "multiple_of": 16},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    **{"n_langs": 1, "type_vocab_size": 2, "hidden_dropout": 0.0},
}


_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_expand": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
_TEXT_MODEL = {
    **{k: SETTINGS[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers")},
    **{k: SETTINGS[k] for k in ("num_attention_heads", "num_key_value_heads", "vocab_size")},
    **{"head_dim": 8, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1},
}
_BERT = {**_TEXT_MODEL, "model_type": "bert"}
# What an architecture needs beside SETTINGS; None for what it does not stand
OWN = {
    "bamba": {**_MAMBA, "attn_layer_indices": [1, 4]},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "codegen": {"n_head": 4, "num_attention_heads": None, "rotary_dim": 4},
    "cpmant": {"prompt_length": 4, "dim_head": 8, "segment_types": 4, "prompt_types": 4},
    "deepseek_v3": {
        **{"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
        **{"v_head_dim": 8, "head_dim": None},
    },
    "dots1": {
        **{"first_k_dense_replace": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
        **{"n_shared_experts": 1},
    },
    "encoder-decoder": {
        "encoder": _BERT,
        "decoder": {**_BERT, "is_decoder": True, "add_cross_attention": True},
    },
    "falcon": {"head_dim": None},
    "falcon_h1": {**_MAMBA, "mamba_d_ssm": 32, "mamba_n_groups": 1, "head_dim": None},
    "funnel": {"block_sizes": [2, 2], "num_hidden_layers": None, "num_blocks": None, "d_head": 8},
    "gemma3n_text": {
        **{"intermediate_size": [32] * LAYERS, "activation_sparsity_pattern": [0.0] * LAYERS},
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
        **{"num_kv_shared_layers": 0, "vocab_size_per_layer_input": WORDS},
        **{"hidden_size_per_layer_input": 8, "laurel_rank": 8},
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2], [["global"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {
        **_MAMBA,
        "layers_block_type": ["mamba", "attention", "mamba", "mamba", "attention"],
    },
    "jamba": {"use_mamba_kernels": False},
    "jetmoe": {"kv_channels": 8, "num_key_value_heads": 1, "num_experts_per_tok": 2},
    "luke": {"entity_vocab_size": 16, "entity_emb_size": 16},
    "mamba2": {
        "num_heads": 4,
        "head_dim": 8,
        "expand": 2,
        "state_size": 8,
        "n_groups": 1,
        "chunk_size": 8,
    },
    "mega": {"bidirectional": False},
    "olmoe": {"num_experts_per_tok": 2},
    "perceiver": {
        **{"num_latents": 4, "d_latents": 16, "d_model": 16, "num_self_attends_per_block": LAYERS},
        **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2},
        **{"qk_channels": 16, "v_channels": 16},
    },
    "prophetnet": {"num_hidden_layers": None},
    "qwen3_moe": {"num_experts_per_tok": 2},
    "reformer": {
        **{"axial_pos_embds_dim": (8, 8), "axial_pos_shape": (8, 16)},
        **{"attn_layers": ["local"] * LAYERS, "num_hidden_layers": None},
    },
    "roc_bert": {
        **{"pronunciation_vocab_size": 16, "shape_vocab_size": 16},
        **{"pronunciation_embed_dim": 8, "shape_embed_dim": 8},
    },
    "t5gemma": {"encoder": _TEXT_MODEL, "decoder": _TEXT_MODEL},
    "transfo-xl": {
        "cutoffs": [20, 40],
        "d_embed": 16,
        "d_head": 8,
        "max_position_embeddings": None,
    },
    "xlm-prophetnet": {"num_hidden_layers": None},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"use_mamba_kernels": False},
    "zamba2": {
        "layers_block_type": ["mamba", "hybrid", "mamba", "mamba", "hybrid"],
        "use_mamba_kernels": False,
    },
}


def tiny(kind, model_type):
    """Build the small model, in eval mode, its weights far from their first ones."""
    model_class = getattr(transformers, KINDS[kind][model_type])
    own = {**({"is_decoder": True} if kind == "causal" else {}), **OWN.get(model_type, {})}
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**settings_of(model_type, own))
    model = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # else computed and not saved, as Marian's positions
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def settings_of(model_type, own):
    """The settings of ``SETTINGS`` that a configuration has, and its own beside them."""
    whole = model_type in ("encoder-decoder",)  # has no standard of its own
    known = (
        ()
        if whole
        else vars(CONFIG_MAPPING[model_type]()) | CONFIG_MAPPING[model_type].attribute_map
    )
    found = {k: v for k, v in SETTINGS.items() if k in known and k not in own}
    return {**found, **{k: v for k, v in own.items() if v is not None}}


# Of what else than words they are made, or too much to be built small
NOT_WALKED = {
    **dict.fromkeys(("fuyu", "gemma3", "gemma3n", "git", "got_ocr2"), "reads images"),
    **dict.fromkeys(("emu3", "llama4", "mllama", "phi4_multimodal"), "reads images"),
    **dict.fromkeys(("granite_speech", "qwen2_audio", "wav2vec2"), "reads sound"),
    **dict.fromkeys(("musicgen", "musicgen_melody"), "writes sound"),
    **dict.fromkeys(("qdqbert", "speech_to_text_2", "transfo-xl"), "does not run any more"),
    "gptsan-japanese": "has a decoder that is no second model",
}
# Which transformers 4.53 itself does not read back as it wrote them
NOT_READ_BACK = ("dbrx",)
# What no student is made of, and what the error says
REFUSED = {
    "albert": "keeps its layers is not known",
    "diffllama": "'self_attn.lambda_init' would be",
    "esm": "contact_head.regression.weight",
    "flaubert": "keeps its layers is not known",
    "funnel": "blocks of unlike length",
    "gemma3n_text": "embed_tokens_per_layer",
    "perceiver": "keeps its layers is not known",
    "reformer": "hand on two streams",
    "rwkv": "rescaled in place",
    "xlm": "keeps its layers is not known",
    "zamba2": "layer_block_map",
}
# Which layers stay where what a layer is depends on its number
KEPT = {"jamba": [0, 3], "pegasus_x": [0, 3, 4]}
# One of each row and rule of the table, for every day
SAMPLE = {
    "causal": "bart bamba bert bloom cohere2 deepseek_v3 diffllama gpt2 gpt_neo jamba llama mamba",
    "masked": "albert bert distilbert esm longformer modernbert squeezebert",
    "seq2seq": "bart encoder-decoder led pegasus_x prophetnet seamless_m4t t5 t5gemma",
}


def walked(every):
    """The architectures that can be built small, as (kind, model type)."""
    for kind, names in KINDS.items():
        chosen = names if every else SAMPLE[kind].split()
        for model_type in chosen:
            exists = hasattr(transformers, KINDS[kind][model_type])
            if model_type not in NOT_WALKED and exists:
                yield kind, model_type
