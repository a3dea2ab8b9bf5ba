"""Every architecture of transformers' mappings, built small, and the KL at its loss's positions."""

import contextlib
import inspect
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from composer.core import Precision
from composer.devices import DeviceCPU
from composer.models import HuggingFaceModel
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from composer_distill import Distillation, KLDivergence
from composer_distill.teachers.splitting import shallow_copy

VOCAB, LENGTH, CLASSES = 40, 8, 5

KINDS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "tokens": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "sequences": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "spans": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "images": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "pixels": "MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
    "speech": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "sounds": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
    "frames": "MODEL_FOR_AUDIO_FRAME_CLASSIFICATION_MAPPING_NAMES",
    "choices": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "captions": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",  # turns without a picture
}
WIDER = {"speech": "seq2seq", "captions": "causal"}  # has some of the classes too
SOUND = ("speech", "sounds", "frames", "ctc")

_WIDTHS = [
    "hidden_size",
    "d_model",
    "n_embd",
    "dim",
    "emb_dim",
    "embedding_size",
    "hidden_dim",
    "d_embed",
    "n_embed",
    "model_dim",
    "attention_hidden_size",
    "d_inner",
]
_LAYERS = [
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_rnn_layers",
]
_HEADS = [
    "num_attention_heads",
    "n_head",
    "n_heads",
    "num_heads",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "num_key_value_heads",
    "num_encoder_attention_heads",
    "num_decoder_attention_heads",
]
_INNER = [
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "n_inner",
    "ffn_hidden_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "expert_ffn_dim",
]
_SMALL = {
    **dict.fromkeys(_WIDTHS, 32), **dict.fromkeys(_LAYERS, 2), **dict.fromkeys(_HEADS, 2),
    **dict.fromkeys(_INNER, 32),
    "head_dim": 16, "d_kv": 16, "d_head": 16, "vocab_size": VOCAB, "n_vocab": VOCAB,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_seq_len": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "image_size": 64,
    "patch_size": 8, "type_vocab_size": 2, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
    "decoder_start_token_id": 2, "rotary_dim": 8, "state_size": 8, "conv_dim": (8, 8),
    "conv_stride": (4, 4), "conv_kernel": (8, 8), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "mask_time_prob": 0.0,
    "feat_extract_norm": "layer", "apply_spec_augment": False, "moe_num_experts": 4,
    "num_experts_per_tok": 2, "decoder_vocab_size": VOCAB,
    "entity_vocab_size": 8, "vocab_size_per_layer_input": VOCAB, "pooler_hidden_size": 32,
    "reference_compile": False, "d_latents": 32, "num_latents": 8, "d_model_latents": 32,
    "max_source_positions": 32, "max_target_positions": 64, "num_mel_bins": 8, "input_channels": 1,
    "input_feat_per_channel": 8, "conv_channels": 16, "num_conv_layers": 2,
    "vision_feature_layer": -1,
}  # fmt: skip

_SWIN = {
    "window_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "hidden_size": 32,
}  # fmt: skip
# What single families need beside it, by how the names of their classes begin
_ALSO: dict[str, dict[str, Any]] = {
    "CodeGen": {"n_head": 4, "rotary_dim": 4},
    "DeepseekV3": {
        "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16, "qk_head_dim": 32, "v_head_dim": 16, "kv_lora_rank": 16,
        "q_lora_rank": 16,
    },
    "DonutSwin": _SWIN,
    "Esm": {"vocab_size": VOCAB, "token_dropout": False, "mask_token_id": 3},
    "JetMoe": {"kv_channels": 16, "num_key_value_heads": 1},
    "LayoutLMv3": {
        "visual_embed": False, "coordinate_size": 4, "shape_size": 4, "hidden_size": 24,
        "intermediate_size": 24,
    },
    "Lilt": {"channel_shrink_ratio": 2, "hidden_size": 48, "intermediate_size": 48},
    "Mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1, "expand": 2},
    "Moonshine": {
        f"{part}_{what}": 2 for part in ("encoder", "decoder")
        for what in ("num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    },
    "Nemotron": {"num_key_value_heads": 2, "head_dim": 16},
    "Swin": _SWIN,
    "Wav2Vec2Bert": {
        "vocab_size": VOCAB, "feature_projection_input_dim": 8, "conformer_conv_dropout": 0.0,
    },
    "Wav2Vec2Conformer": {"vocab_size": VOCAB, "conformer_conv_dropout": 0.0},
}  # fmt: skip


# What is not walked through, and why: first words on the model, then on this recipe
NOT_COVERED = {
    "its decoder reads input_ids and not labels: give decoder_input_ids in the batch": [
        "FSMTForConditionalGeneration"
    ],
    "its loss is of n-grams, not of the logits that it returns: its labels count": [
        "ProphetNetForCausalLM",
        "ProphetNetForConditionalGeneration",
        "XLMProphetNetForCausalLM",
        "XLMProphetNetForConditionalGeneration",
    ],
    "its loss shifts twice, a fault of transformers: its class decides": [
        "JetMoeForCausalLM",
        "MoshiForCausalLM",
    ],
    "has no loss of its own: for inference alone": ["DeiTForImageClassificationWithTeacher"],
    "has sizes or parts that the recipe for all does not know": [
        "ASTForAudioClassification",
        "BeitForSemanticSegmentation",
        "Blip2ForConditionalGeneration",
        "BlipForConditionalGeneration",
        "ChameleonForConditionalGeneration",
        "DPTForSemanticSegmentation",
        "Data2VecVisionForSemanticSegmentation",
        "Dots1ForCausalLM",
        "EfficientFormerForImageClassification",
        "EfficientFormerForImageClassificationWithTeacher",
        "EfficientNetForImageClassification",
        "Emu3ForCausalLM",
        "Emu3ForConditionalGeneration",
        "EncoderDecoderModel",
        "GitForCausalLM",
        "Glm4vForConditionalGeneration",
        "GraniteMoeHybridForCausalLM",
        "KyutaiSpeechToTextForConditionalGeneration",
        "LevitForImageClassification",
        "LevitForImageClassificationWithTeacher",
        "Llama4ForCausalLM",
        "MCTCTForCTC",
        "MllamaForCausalLM",
        "MllamaForConditionalGeneration",
        "MobileViTV2ForImageClassification",
        "MobileViTV2ForSemanticSegmentation",
        "MusicgenForCausalLM",
        "MusicgenMelodyForCausalLM",
        "PerceiverForImageClassificationConvProcessing",
        "PerceiverForImageClassificationFourier",
        "PerceiverForMaskedLM",
        "Phi4MultimodalForCausalLM",
        "Qwen2VLForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "ReformerForMaskedLM",
        "ReformerForQuestionAnswering",
        "ReformerForSequenceClassification",
        "ReformerModelWithLMHead",
        "Siglip2ForImageClassification",
        "Speech2Text2ForCausalLM",
        "SpeechEncoderDecoderModel",
        "T5GemmaForConditionalGeneration",
        "T5GemmaForSequenceClassification",
        "T5GemmaForTokenClassification",
        "TransfoXLForSequenceClassification",
        "TransfoXLLMHeadModel",
        "UdopForConditionalGeneration",
        "ViTHybridForImageClassification",
        "VisionEncoderDecoderModel",
        "Zamba2ForCausalLM",
        "Zamba2ForSequenceClassification",
        "ZambaForCausalLM",
        "ZambaForSequenceClassification",
    ],
    "is not small at any size, or slow": [
        "ModernBertForMaskedLM",
        "BambaForCausalLM",
        "FalconH1ForCausalLM",
        "HieraForImageClassification",
        "PerceiverForImageClassificationLearned",
    ],
    "needs a package that is not installed": [
        "DinatForImageClassification",
        "Gemma3nForConditionalGeneration",
        "JambaForCausalLM",
        "JambaForSequenceClassification",
        "LayoutLMv2ForQuestionAnswering",
        "LayoutLMv2ForSequenceClassification",
        "LayoutLMv2ForTokenClassification",
        "NatForImageClassification",
        "QDQBertForMaskedLM",
        "QDQBertForMultipleChoice",
        "QDQBertForQuestionAnswering",
        "QDQBertForSequenceClassification",
        "QDQBertForTokenClassification",
        "QDQBertLMHeadModel",
        "TimmWrapperForImageClassification",
    ],
    "needs more than words or a picture in the batch": [
        "BrosForTokenClassification",
        "DiaForConditionalGeneration",
        "IdeficsForVisionText2Text",
        "ImageGPTForImageClassification",
        "InstructBlipForConditionalGeneration",
        "Kosmos2ForConditionalGeneration",
        "LongformerForMultipleChoice",
        "LongformerForQuestionAnswering",
        "LxmertForQuestionAnswering",
        "Pix2StructForConditionalGeneration",
        "Pop2PianoForConditionalGeneration",
        "ShieldGemma2ForImageClassification",
        "Wav2Vec2ForMaskedLM",
        "XmodForCausalLM",
        "XmodForMaskedLM",
        "XmodForMultipleChoice",
        "XmodForQuestionAnswering",
        "XmodForSequenceClassification",
        "XmodForTokenClassification",
    ],
}
TOO_LARGE = set(NOT_COVERED["is not small at any size, or slow"])


def architectures(kind: str) -> list[tuple[str, str]]:
    """Return the model types and class names of a kind, each class once."""
    found: dict[str, str] = {}
    known = {name for _, name in architectures(WIDER[kind])} if kind in WIDER else set()
    for model_type, names in getattr(modeling_auto, KINDS[kind]).items():
        for name in names if isinstance(names, (tuple, list)) else (names,):
            found.setdefault(name, model_type)
    return [(model_type, name) for name, model_type in found.items() if name not in known]


def shrink(config: Any) -> Any:
    """Return a configuration with all that is large in it made small."""
    for name, value in _SMALL.items():
        given = getattr(config, name, None)
        alike = isinstance(given, (tuple, list)) is isinstance(value, tuple)
        known = given is not None or name.endswith(("_token_id", "_compile"))
        if alike and known and not isinstance(given, dict):
            with contextlib.suppress(Exception):  # what a configuration derives can't be set
                setattr(config, name, value)
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            shrink(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def build(model_type: str, name: str, seed: int) -> torch.nn.Module:
    """Return a small model of a class, of random weights."""
    config = shrink(CONFIG_MAPPING[model_type]())
    for family in (family for family in _ALSO if name.startswith(family)):
        vars(config).update(_ALSO[family])
    config.num_labels = 2 if "QuestionAnswering" in name else CLASSES
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return getattr(transformers, name)(config).eval()


def batch_of(kind: str, model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a batch with padding, and labels for some of its positions."""
    if kind in SOUND:
        return _sound_of(kind, model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, VOCAB, (4, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([[8], [5], [6], [8]])).long()
    batch = {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}
    if kind in ("causal", "captions"):
        batch["labels"] = ids.masked_fill((mask == 0) | (torch.arange(LENGTH) < 3), -100)
    elif kind == "masked":
        batch["labels"] = ids.masked_fill(torch.arange(LENGTH) % 2 == 0, -100)
    elif kind == "seq2seq":
        targets = torch.randint(4, VOCAB, (4, LENGTH), generator=generator)
        batch["labels"] = targets.masked_fill(torch.arange(LENGTH) > 4, -100)
    elif kind == "tokens":
        batch["labels"] = (ids % CLASSES).masked_fill(mask == 0, -100)
    elif kind == "sequences":
        batch["input_ids"][:, 0] = 2  # some answer from the end of the sequence
        batch["labels"] = torch.tensor([0, 1, 2, 3])
    elif kind == "spans":
        batch["start_positions"], batch["end_positions"] = torch.tensor(
            [[1, 2, 0, 3], [2, 3, 1, 4]]
        )
    elif kind in ("images", "pixels"):
        batch = {"pixel_values": torch.randn(2, 3, 64, 64, generator=generator)}
        labels = torch.randint(0, CLASSES, (2, 64, 64), generator=generator)
        batch["labels"] = labels if kind == "pixels" else labels[:, 0, 0]
    elif kind == "choices":
        rows = {name: batch[name][:, None].expand(-1, 3, -1) for name in batch}
        batch = {**rows, "labels": torch.tensor([0, 1, 2, 0])}
    return batch


def _sound_of(kind: str, model: Any) -> dict[str, Tensor]:
    """Return two sounds, or their spectra, of unlike length, and labels."""
    generator = torch.Generator().manual_seed(0)
    config, waves = model.config, model.main_input_name == "input_values"
    length = {"ctc": 400, "speech": 4000}.get(kind, 800) if waves else 64
    width = getattr(config, "feature_projection_input_dim", getattr(config, "num_mel_bins", 8))
    sound = torch.randn(2, length, *([] if waves else [width]), generator=generator)
    heard = (torch.arange(length) < torch.tensor([[length], [3 * length // 10]])).long()
    batch = {"input_values" if waves else "input_features": sound, "attention_mask": heard}
    if waves:
        batch["input_values"] = sound * heard
    elif "Whisper" in type(model).__name__:  # always hears as much
        batch = {"input_features": sound.transpose(1, 2)}
    if kind == "sounds":
        return {**batch, "labels": torch.tensor([0, 1])}
    if kind == "frames":
        with torch.no_grad():
            shape = model(**for_model(model, batch)).logits.shape[:2]
        frames = torch.randint(0, CLASSES, shape, generator=generator)
        return {**batch, "labels": torch.nn.functional.one_hot(frames, CLASSES)}
    return {**batch, "labels": torch.tensor([[3, 4, 5], [6, 7, -100]])}


def for_model(model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what of the batch a model's forward names."""
    names = inspect.signature(model.forward).parameters
    return {key: value.clone() for key, value in batch.items() if key in names}


def logged_kl(student: torch.nn.Module, teacher: torch.nn.Module, batch: Any, kind: str) -> float:
    """Return the KL that a Trainer would log: its term is asked as AFTER_LOSS asks it."""
    loss = KLDivergence(1.0, dim=1 if kind == "pixels" else -1)
    algorithm = Distillation(teacher, loss, telemetry=False)
    (term,), panel = algorithm._events._terms, algorithm._events._panel
    wrapped = HuggingFaceModel(student)
    outputs = wrapped(shallow_copy(batch))
    state: Any = SimpleNamespace(
        model=wrapped, outputs=outputs, loss=outputs["loss"], device=DeviceCPU(),
        fsdp_config=None, tp_config=None, timestamp=SimpleNamespace(batch=0),
        precision=Precision.FP32, precision_config=None,
    )  # fmt: skip
    term.prepare(state)
    panel.prepare(state, "replicated")
    return float(term.measure(state, batch, outputs, trust_labels=True).loss)


def by_hand(student: torch.nn.Module, teacher: torch.nn.Module, batch: Any, kind: str) -> float:
    """Return the KL at the positions of the student's own loss, written apart from the package.

    Those are the rows of the logits that get a gradient; a masked or tagging model counts what is
    attended. The teacher sees the labels too, so that it makes its decoder's inputs itself.
    """
    ours = student(**batch)
    with torch.no_grad():
        theirs = teacher(**batch)
    if kind == "spans":
        pairs = [(ours[n], theirs[n]) for n in ("start_logits", "end_logits")]
        return sum(_kl(s, t).mean().item() for s, t in pairs) / 2
    axis = 1 if kind == "pixels" else -1
    kl = _kl(ours.logits, theirs.logits, axis)
    named = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    generates = student.config.is_encoder_decoder or type(student).__name__ in named
    if kind in ("causal", "captions", "seq2seq", "speech") or (kind == "masked" and generates):
        (gradient,) = torch.autograd.grad(ours.loss, ours.logits)
        kl = kl[gradient.abs().sum(-1) > 0]
    elif kind in ("masked", "tokens"):
        kl = kl[batch["attention_mask"] == 1] if "attention_mask" in batch else kl
    elif kind in ("ctc", "frames") and "attention_mask" in batch:
        kl = kl[
            student._get_feature_vector_attention_mask(kl.shape[1], batch["attention_mask"]).bool()
        ]
    return kl.mean().item()


def _kl(student: Tensor, teacher: Tensor, axis: int = -1) -> Tensor:
    student, teacher = student.double(), teacher.double()  # near agreement float32 is not enough
    p = teacher.softmax(axis)
    return (p * (teacher.log_softmax(axis) - student.log_softmax(axis))).sum(axis).detach()
