"""Students of less width: against the teacher with what was cut set to zero, and by hand."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from composer_distill import student_from_teacher
from composer_distill.students.activations import _mean_size, measured
from composer_distill.students.families import family_of

SIZES = {
    "vocab_size": 32,
    "hidden_size": 24,
    "intermediate_size": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 24,
}
DECODERS = {
    "llama": (LlamaConfig, {"num_key_value_heads": 3, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralConfig, {"num_key_value_heads": 3, "head_dim": 8}),
    "qwen2": (Qwen2Config, {"num_key_value_heads": 2}),
    "qwen3": (Qwen3Config, {"num_key_value_heads": 3, "head_dim": 6}),
}
ENCODERS = {
    "bert": (BertConfig, {}),
    "roberta": (RobertaConfig, {"pad_token_id": 1}),
}


def made(name, kind=None):
    config, more = {**DECODERS, **ENCODERS}[name]
    kind = kind or (AutoModelForCausalLM if name in DECODERS else AutoModelForMaskedLM)
    torch.manual_seed(0)
    model = kind.from_config(config(**{**SIZES, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.tie_weights()
    return model


def batches():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(2, 32, (2, 3, 8), generator=generator)
    attention = (torch.arange(8) < torch.tensor([[8], [5], [3]])).long()
    return [{"input_ids": x, "attention_mask": attention} for x in ids]


def layers_of(model):
    base = model.base_model
    return base.layers if hasattr(base, "layers") else base.encoder.layer


def parts(layer):
    """What reads the heads and what reads the neurons of a layer."""
    if hasattr(layer, "mlp"):
        return layer.self_attn.o_proj, layer.mlp.down_proj
    return layer.attention.output.dense, layer.output.dense


def sizes_read(model, which):
    """What the heads' or the neurons' readers of each layer are given, of each batch."""
    found = [[] for _ in layers_of(model)]
    hooks = [
        parts(layer)[which].register_forward_pre_hook(
            lambda own, given, kept=kept: kept.append(given[0].detach().double())
        )
        for layer, kept in zip(layers_of(model), found, strict=True)
    ]
    for batch in batches():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found


def best(importance, count):
    return sorted(sorted(range(len(importance)), key=lambda i: -importance[i])[:count])


def attended(activations):
    """Each sample's attended activations, of all batches."""
    for batch, activation in zip(batches(), activations, strict=True):
        for row, length in zip(activation, batch["attention_mask"].sum(1), strict=True):
            yield row[:length]


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_the_neurons_that_stay_are_the_most_active_and_the_others_count_as_zero(name):
    teacher = made(name)
    before = copy.deepcopy(teacher.state_dict())
    student = student_from_teacher(teacher, intermediate=7, batches=batches())
    expected = copy.deepcopy(teacher)
    activations = sizes_read(teacher, 1)
    for layer, inputs in zip(layers_of(expected), activations, strict=True):
        means = torch.stack([row.abs().mean(0) for row in attended(inputs)])
        kept = best(means.square().sum(0).sqrt().tolist(), 7)
        with torch.no_grad():
            gone = [i for i in range(20) if i not in kept]
            parts(layer)[1].weight[:, gone] = 0.0
    for batch in batches():
        torch.testing.assert_close(student(**batch).logits, expected(**batch).logits)
    assert student.config.intermediate_size == 7
    assert all(torch.equal(before[n], w) for n, w in teacher.state_dict().items())
    ours = {parameter.data_ptr() for parameter in student.parameters()}
    assert ours.isdisjoint(parameter.data_ptr() for parameter in teacher.parameters())


@pytest.mark.parametrize("name", DECODERS)
def test_the_heads_that_stay_are_the_most_active_and_the_others_count_as_zero(name):
    teacher = made(name)
    groups = teacher.config.num_key_value_heads
    each = 6 // groups
    heads = each * (groups - 1) if groups < 6 else 4
    student = student_from_teacher(teacher, heads=heads, batches=batches())
    expected = copy.deepcopy(teacher)
    for layer, inputs in zip(layers_of(expected), sizes_read(teacher, 0), strict=True):
        norms = torch.stack(
            [row.unflatten(-1, (6, -1)).norm(dim=-1).mean(0) for row in attended(inputs)]
        )
        of_group = norms.square().sum(0).reshape(groups, each).sum(1)
        kept = best(of_group.tolist(), heads // each)
        out = parts(layer)[0].weight
        size = out.shape[1] // groups
        with torch.no_grad():
            for group in range(groups):
                if group not in kept:
                    out[:, group * size : (group + 1) * size] = 0.0
    for batch in batches():
        torch.testing.assert_close(student(**batch).logits, expected(**batch).logits)
    assert student.config.num_attention_heads == heads
    assert student.config.num_key_value_heads == heads // each


@pytest.mark.parametrize("name", ["llama", "llama-tied", "bert", "roberta"])
def test_the_channels_that_stay_are_the_most_active(name):
    teacher = made(name)
    student = student_from_teacher(teacher, hidden=16, heads=4, batches=batches())
    importance = measured(teacher, family_of(teacher), batches())
    total = torch.zeros(24, dtype=torch.float64)
    norms = [m for n, m in teacher.named_modules() if n.lower().endswith("norm")]
    given = {module: [] for module in norms}
    hooks = [
        module.register_forward_hook(lambda own, _, output: given[own].append(output.double()))
        for module in norms
    ]
    for batch in batches():
        teacher(**batch)
    for hook in hooks:
        hook.remove()
    for module in norms:
        if given[module][0].shape[-1] == 24:
            means = torch.stack([row.abs().mean(0) for row in attended(given[module])])
            total += means.square().sum(0).sqrt()
    torch.testing.assert_close(importance.hidden, total.detach())
    kept = best(total.tolist(), 16)
    words = teacher.get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, words[:, kept])
    norm = norms[-1] if name.startswith("llama") else norms[0]
    path = next(n for n, m in teacher.named_modules() if m is norm)
    assert torch.equal(student.get_submodule(path).weight, norm.weight[kept])
    assert student(**batches()[0]).logits.isfinite().all()


@pytest.mark.parametrize("name", DECODERS)
def test_a_narrow_student_generates_is_saved_and_loaded(name, tmp_path):
    student = student_from_teacher(
        made(name), layers=2, hidden=16, intermediate=9, heads=6, batches=batches()
    )
    ids = batches()[0]["input_ids"][:, :3]
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    written = student.generate(ids, use_cache=True, **options)
    assert torch.equal(written, student.generate(ids, use_cache=False, **options))
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    batch = batches()[0]
    assert torch.equal(again(**batch).logits, student(**batch).logits)
    assert len(layers_of(again)) == 2
    student(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize("name", ["llama", "bert", "roberta"])
def test_other_heads_are_cut_too(name):
    teacher = made(name, AutoModelForSequenceClassification)
    teacher.config.pad_token_id = 0 if name == "llama" else teacher.config.pad_token_id
    student = student_from_teacher(teacher, hidden=16, heads=4, batches=batches())
    assert student(**batches()[0]).logits.shape == (3, 2)


def test_activations_that_are_not_finite_are_an_error_that_names_the_batch():
    teacher = made("llama")
    good, other = batches()
    broken = {"inputs_embeds": torch.full((1, 4, 24), float("nan"))}
    with pytest.raises(ValueError, match=r"not finite after batch 2, counted from 0"):
        student_from_teacher(teacher, intermediate=7, batches=[good, other, broken])


def test_what_is_not_attended_is_left_out_whatever_it_is():
    sizes = torch.tensor([[[1.0], [float("nan")], [3.0]]])
    assert _mean_size(sizes, torch.tensor([[1, 0, 1]])).tolist() == [[2.0]]


class Odd(PreTrainedModel):
    """Like BERT by its configuration's name, and with a weight that no table knows."""

    config_class = BertConfig

    def __init__(self, config):
        super().__init__(config)
        self.bert = AutoModelForMaskedLM.from_config(config).bert
        self.extra = torch.nn.Linear(config.hidden_size, 2)

    def forward(self, **inputs):
        return self.bert(**inputs)


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        ("llama", {"hidden": 25}, ValueError, r"hidden must lie in \[1, 24\].*got 25"),
        ("llama", {"intermediate": 0}, ValueError, r"intermediate must lie in \[1, 20\]"),
        ("llama", {"heads": 2.5}, TypeError, "heads must be a whole number, got float"),
        ("llama", {"heads": 3}, ValueError, "heads must be a multiple of 2, since so many share"),
        ("bert", {"heads": 3}, ValueError, "Pass hidden=12 with heads=3"),
        ("bert", {"hidden": 12}, ValueError, "has hidden / heads channels a head, which is 4"),
        ("bert", {"intermediate": 4, "batches": None}, ValueError, "need batches"),
        ("bert", {"intermediate": 4, "batches": []}, ValueError, "at least one batch"),
        ("bert", {}, ValueError, "layers, hidden, intermediate or heads must say what stays"),
    ],
)
def test_widths_that_can_not_be(name, options, error, match):
    with pytest.raises(error, match=match):
        student_from_teacher(made(name), **{"batches": batches(), **options})


def test_architectures_whose_width_is_not_known_are_refused_by_name():
    small = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    models = {
        "GPT2LMHeadModel": GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2)),
        "T5ForConditionalGeneration": T5ForConditionalGeneration(T5Config(**small)),
    }
    for name, model in models.items():
        with pytest.raises(ValueError, match=f"where a {name} .* is not known.*bert.*llama"):
            student_from_teacher(model, intermediate=4, batches=batches())
    odd = Odd(BertConfig(**SIZES))
    with pytest.raises(
        ValueError, match=r"the axes of the weight 'extra\.weight' are is not known"
    ):
        student_from_teacher(odd, intermediate=4, batches=batches())
