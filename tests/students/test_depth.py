import copy

import numpy as np
import pytest
import torch
from composer.models import HuggingFaceModel
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_distill import layer_importance, student_from_teacher
from composer_distill.students.depth import evenly


def gpt2(**settings):
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_head=2, n_layer=5, vocab_size=32, n_positions=16, bos_token_id=1, **settings
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def t5():
    torch.manual_seed(0)
    config = T5Config(
        d_model=16, d_kv=8, d_ff=32, num_layers=5, num_decoder_layers=5, num_heads=2, vocab_size=32
    )
    return T5ForConditionalGeneration(config).eval()


def batches(count=2):
    generator = torch.Generator().manual_seed(7)
    ids = [torch.randint(0, 32, (3, 8), generator=generator) for _ in range(count)]
    return [{"input_ids": x, "labels": x} for x in ids]


@pytest.mark.parametrize(
    ("count", "length", "indices"),
    [
        (6, 12, [0, 2, 4, 7, 9, 11]),  # DistilBERT's
        (1, 5, [0]),
        (2, 5, [0, 4]),
        (5, 5, [0, 1, 2, 3, 4]),
        (3, 4, [0, 2, 3]),
    ],
)
def test_even_distances(count, length, indices):
    assert evenly(count, length) == indices


def test_a_number_keeps_layers_at_even_distances():
    teacher = gpt2()
    student, chosen = student_from_teacher(teacher, 3), student_from_teacher(teacher, [0, 2, 4])
    pairs = zip(student.state_dict().values(), chosen.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [block.attn.layer_idx for block in student.transformer.h] == [0, 1, 2]


def test_all_layers_give_the_teacher():
    teacher = gpt2()
    student = student_from_teacher(teacher, 5)
    ids = batches(1)[0]["input_ids"]
    assert torch.equal(student(ids).logits, teacher(ids).logits)


def test_importance_is_the_rise_of_the_loss_of_a_student_without_the_layer():
    teacher, data = gpt2(), batches()

    def loss(model):
        with torch.no_grad():
            return sum(float(model(**batch).loss) for batch in data) / len(data)

    every = range(5)
    rises = [
        loss(student_from_teacher(teacher, [i for i in every if i != left])) - loss(teacher)
        for left in every
    ]
    modes = [module.training for module in teacher.train().modules()]
    assert layer_importance(teacher, iter(data)) == pytest.approx(rises, abs=1e-6)
    assert [module.training for module in teacher.modules()] == modes
    assert "forward" not in vars(teacher.transformer.h[0])

    kept = sorted(sorted(every, key=lambda i: -rises[i])[:2])
    student = student_from_teacher(teacher, "importance", n_layers=2, batches=data)
    expected = student_from_teacher(teacher, kept)
    assert torch.equal(
        student.transformer.h[1].mlp.c_fc.weight, expected.transformer.h[1].mlp.c_fc.weight
    )
    assert torch.equal(
        student.transformer.h[0].mlp.c_fc.weight, expected.transformer.h[0].mlp.c_fc.weight
    )


def test_each_stack_of_an_encoder_decoder_has_its_choice():
    teacher = t5()
    student = student_from_teacher(teacher, {"encoder": [0, 3], "decoder.block": 1})
    assert (student.config.num_layers, student.config.num_decoder_layers) == (2, 1)
    assert torch.equal(
        student.encoder.block[1].layer[1].DenseReluDense.wi.weight,
        teacher.encoder.block[3].layer[1].DenseReluDense.wi.weight,
    )
    only = student_from_teacher(teacher, {"decoder": 2})
    assert (only.config.num_layers, only.config.num_decoder_layers) == (5, 2)


def test_t5_keeps_the_bias_of_positions_that_its_first_layer_holds():
    teacher = t5()
    student = student_from_teacher(teacher, [1, 3])
    for stack in ("encoder", "decoder"):
        first = getattr(student, stack).block[0].layer[0].SelfAttention
        theirs = getattr(teacher, stack).block
        bias = theirs[0].layer[0].SelfAttention.relative_attention_bias.weight
        assert torch.equal(first.relative_attention_bias.weight, bias)
        assert torch.equal(first.q.weight, theirs[1].layer[0].SelfAttention.q.weight)


def test_types_stay_and_gradients_are_on():
    teacher = gpt2().to(torch.bfloat16)
    teacher.requires_grad_(False)
    student = student_from_teacher(HuggingFaceModel(teacher), 2)
    assert type(student) is GPT2LMHeadModel
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.lm_head.weight is student.transformer.wte.weight


class Plain(PreTrainedModel):
    """An architecture that the table does not know."""

    config_class = PretrainedConfig

    def __init__(self, config):
        super().__init__(config)
        self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(config.depth))
        self.post_init()

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return x


def test_an_unknown_architecture_is_told_where_its_layers_are():
    teacher = Plain(PretrainedConfig(depth=4))
    with pytest.raises(ValueError, match=r"lists of modules are: steps \(4\)\. Name the list"):
        student_from_teacher(teacher, 2)
    student = student_from_teacher(teacher, 2, stacks={"steps": "depth"})
    x = torch.ones(1, 4)
    assert torch.equal(student(x), teacher.steps[3](teacher.steps[0](x)))
    with pytest.raises(ValueError, match="which is no list of modules"):
        student_from_teacher(teacher, 2, stacks={"layers": "depth"})
    with pytest.raises(ValueError, match="in the configuration it is 'not there'"):
        student_from_teacher(teacher, 2, stacks={"steps": "height"})
    for wrong in (["steps"], {}):
        with pytest.raises(TypeError, match="stacks must map paths of lists to .* got"):
            student_from_teacher(teacher, 2, stacks=wrong)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layers": 6}, r"must lie in \[1, 5\].*got 6"),
        ({"layers": 0}, r"must lie in \[1, 5\]"),
        ({"layers": [2, 1]}, "rising indices from 0 to 4"),
        ({"layers": [5]}, "rising indices from 0 to 4"),
        ({"layers": []}, "rising indices"),
        ({"layers": "importance"}, "needs n_layers"),
        ({"layers": 3, "n_layers": 2}, "n_layers=2 is how many layers='importance' keeps, but"),
        ({"layers": {"decoder": 2}}, "names 'decoder', which must be one of.*transformer.h"),
        ({"layers": {}}, r"must name at least one of.*such as \{'transformer\.h': 2\}"),
        ({"layers": {"h": 2, "transformer.h": 3}}, "'transformer.h'.* is named twice"),
    ],
)
def test_choices_that_can_not_be(arguments, match):
    with pytest.raises(ValueError, match=match):
        student_from_teacher(gpt2(), **arguments)


def test_what_is_no_plain_hugging_face_model():
    with pytest.raises(TypeError, match="got Linear"):
        student_from_teacher(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="scale_attn_by_inverse_layer_idx is set"):
        student_from_teacher(gpt2(scale_attn_by_inverse_layer_idx=True), 2)
    adapted = gpt2()
    adapted.peft_config = {"default": "of adapters that were merged"}
    assert student_from_teacher(adapted, 2).config.n_layer == 2
    adapted.transformer.wte._disable_adapters = False
    with pytest.raises(TypeError, match=r"has adapters: merge them by merge_and_unload\(\) first"):
        student_from_teacher(adapted, 2)
    quantized = copy.copy(gpt2())
    quantized.hf_quantizer = object()
    with pytest.raises(TypeError, match="without quantization"):
        student_from_teacher(quantized, 2)


@pytest.mark.parametrize(
    "layers", [2.5, [0.9, 2.7], ["0", "1"], [True, False], "even", np.array([0.0, 2.0]), {0, 1}]
)
def test_layers_that_are_no_whole_numbers(layers):
    with pytest.raises(TypeError, match=r"a list of their indices, which are whole numbers.*got"):
        student_from_teacher(gpt2(), layers)


@pytest.mark.parametrize(
    "layers", [np.array([0, 2]), torch.tensor([0, 2]), [np.int64(0), np.int64(2)], range(0, 3, 2)]
)
def test_whole_numbers_of_any_kind(layers):
    expected = student_from_teacher(gpt2(), [0, 2]).state_dict()
    found = student_from_teacher(gpt2(), layers)
    assert all(torch.equal(w, expected[n]) for n, w in found.state_dict().items())
    assert student_from_teacher(gpt2(), np.int64(2)).config.n_layer == 2


@pytest.mark.parametrize(
    ("batches", "came"),
    [
        ([torch.ones(1, 4)], "got Tensor"),
        (torch.ones(1, 4), "got Tensor"),
        ({"input_ids": torch.ones(1, 4)}, "got one of them alone"),
    ],
)
def test_batches_are_several_mappings(batches, came):
    message = "batches must be several mappings of the model's inputs, such as .*" + came
    with pytest.raises(TypeError, match=message):
        layer_importance(gpt2(), batches)
    with pytest.raises(TypeError, match=message):
        student_from_teacher(gpt2(), hidden=4, batches=batches)


def test_importance_needs_a_loss():
    with pytest.raises(ValueError, match="at least one batch"):
        layer_importance(gpt2(), [])
    with pytest.raises(ValueError, match="must have labels"):
        layer_importance(gpt2(), [{"input_ids": torch.ones(1, 4, dtype=torch.long)}])
    with pytest.raises(ValueError, match=r"stack must be one of encoder\.block \(5\), decoder"):
        layer_importance(t5(), batches())
    teacher = t5()
    teacher.config.decoder_start_token_id = 0
    of_part = layer_importance(teacher, batches(), stack="decoder")
    assert of_part == layer_importance(teacher, batches(), stack="decoder.block")
    for wrong in ("decoders", "block", "decoder.block.0.layer"):
        with pytest.raises(ValueError, match=r"stack must be one of .*encoder\.block, decoder\.b"):
            layer_importance(t5(), batches(), stack=wrong)


def test_importance_of_what_is_not_finite_is_an_error_that_names_the_batch():
    good, words = batches()
    masked = {**words, "labels": torch.full_like(words["labels"], -100)}
    match = r"loss on batch 1.* is nan.*one label that counts"
    with pytest.raises(ValueError, match=match):
        layer_importance(gpt2(), [good, masked])
    with pytest.raises(ValueError, match=match):
        student_from_teacher(gpt2(), "importance", n_layers=2, batches=[good, masked])
    teacher = gpt2()
    first, second = teacher.transformer.h[:2]
    with torch.no_grad():
        first.mlp.c_proj.bias.add_(1e3)
    second.register_forward_pre_hook(lambda own, given: (given[0].log(), *given[1:]))
    with pytest.raises(ValueError, match=r"without layer 0 of transformer\.h is NaN"):
        layer_importance(teacher, [good])


def test_a_masked_model():
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=16,
    )
    student = student_from_teacher(BertForMaskedLM(config), 2)
    assert student.config.num_hidden_layers == len(student.bert.encoder.layer) == 2
