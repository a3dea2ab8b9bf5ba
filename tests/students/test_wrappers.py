"""What may stand around a teacher, and what of transformers is used that moves."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from composer.models import ComposerModel, HuggingFaceModel
from torch import nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    modeling_utils,
)

from composer_distill import layer_importance, student_from_teacher
from composer_distill.students.building import _no_init_weights


def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=4, **sizes)).eval()


def bart():
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    inner = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    layers = {"encoder_layers": 4, "decoder_layers": 4}
    return BartForConditionalGeneration(
        BartConfig(d_model=8, vocab_size=32, max_position_embeddings=16, **heads, **inner, **layers)
    )


WRAPPERS = {
    "compiled": torch.compile,
    "composer": HuggingFaceModel,
    "compiled composer": lambda model: torch.compile(HuggingFaceModel(model)),
    "composer of compiled": lambda model: HuggingFaceModel(torch.compile(model)),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("made", [llama, bart])
def test_a_wrapped_teacher_keeps_its_head(made, wrapper):
    teacher = made()
    student = student_from_teacher(WRAPPERS[wrapper](teacher), 2)
    assert type(student) is type(teacher)
    expected = student_from_teacher(teacher, 2).state_dict()
    assert student.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[n]) for n, weight in student.state_dict().items())
    assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)


def test_importance_of_a_compiled_teacher():
    teacher, ids = llama(), torch.randint(0, 32, (2, 6))
    batches = [{"input_ids": ids, "labels": ids}]
    rises = layer_importance(teacher, batches)
    assert layer_importance(torch.compile(teacher), batches) == rises


class Around(nn.Module):
    """Somebody's own, which computes something else than the model within."""

    def __init__(self, model):
        super().__init__()
        self.model = model


class Task(ComposerModel):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model(**batch)

    def loss(self, outputs, batch):
        return outputs.loss


@pytest.mark.parametrize("wrapper", [Around, Task])
def test_an_unknown_wrapper_is_refused(wrapper):
    with pytest.raises(TypeError, match=f"got {wrapper.__name__}. If one lies within, pass that"):
        student_from_teacher(wrapper(llama()), 2)


class Adapted(nn.Module):
    """As PEFT's models are: no model of transformers, but with one within."""

    def __init__(self, model, prompts):
        super().__init__()
        self.base_model = model
        self.config, self.peft_config = (
            model.config,
            {"default": SimpleNamespace(is_prompt_learning=prompts)},
        )

    def forward(self, **inputs):
        return self.base_model(**inputs)


@pytest.mark.parametrize(
    ("prompts", "match"),
    [
        (False, r"this Adapted has adapters: merge them by merge_and_unload\(\) first"),
        (True, r"this Adapted has prompts of PEFT: pass its get_base_model\(\)"),
    ],
)
def test_a_model_with_adapters_is_refused_by_name(prompts, match):
    adapted = Adapted(llama(), prompts)
    wrapped = object.__new__(HuggingFaceModel)
    nn.Module.__init__(wrapped)
    wrapped.model = adapted
    for model in (adapted, wrapped):
        with pytest.raises(TypeError, match=match):
            student_from_teacher(model, 2)
    wrapped.model = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="got HuggingFaceModel of a Linear"):
        student_from_teacher(wrapped, 2)


def test_transformers_5_has_it_elsewhere(monkeypatch):
    home = ModuleType("transformers.initialization")
    home.no_init_weights = _no_init_weights()
    monkeypatch.delattr(modeling_utils, "no_init_weights", raising=False)
    monkeypatch.setitem(sys.modules, "transformers.initialization", home)
    assert student_from_teacher(llama(), 2).config.num_hidden_layers == 2
