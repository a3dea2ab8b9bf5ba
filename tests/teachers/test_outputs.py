from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
from composer.models import ComposerModel
from torch import nn

from composer_distill.teachers.outputs import (
    call_model,
    extract_logits,
    passed_over,
)

LOGITS = torch.zeros(2, 3)
# What torchvision's Inception answers in training, and a two-headed model that has no such names
Inception = namedtuple("Inception", ["logits", "aux_logits"])
Heads = namedtuple("Heads", ["first", "second"])


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "hidden": torch.ones(2)},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS),
        UserDict(logits=LOGITS, loss=torch.tensor(1.0)),
        {"out": LOGITS},
        {"out": LOGITS, "loss": torch.tensor(1.0)},
        SimpleNamespace(logits=LOGITS),
        (LOGITS, torch.ones(1)),
        (torch.tensor(1.0), LOGITS, None),
        [None, LOGITS],
        Inception(LOGITS, torch.ones(2, 3)),
    ],
)
def test_finds_the_logits(output):
    assert extract_logits(output, "the student") is LOGITS


@pytest.mark.parametrize(
    ("output", "came"),
    [
        ({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, r"dict with the keys \['a', 'b'\]"),
        ({}, "dict with the keys"),
        (None, "NoneType"),
        ("logits", "str"),
        ((torch.tensor(1.0),), "tuple"),
    ],
)
def test_names_the_owner_where_there_are_no_logits(output, came):
    with pytest.raises(TypeError, match=f"teacher 1 .x.: its output must be a tensor.*{came}"):
        extract_logits(output, "teacher 1 (x)")


@pytest.mark.parametrize(
    ("output", "listed", "choice"),
    [
        (
            {"logits_per_image": LOGITS, "logits_per_text": LOGITS.T, "loss": torch.tensor(1.0)},
            r"\(dict\) .*'logits_per_image' \(2, 3\), 'logits_per_text' \(3, 2\)\. ",
            "output['logits_per_image']",
        ),
        ((LOGITS, LOGITS + 1), r"\(tuple\) .*0 \(2, 3\), 1 \(2, 3\)\. ", "output[0]"),
        (
            (torch.tensor(1.0), LOGITS, LOGITS),
            r"\(tuple\) .*1 \(2, 3\), 2 \(2, 3\)\. ",
            "output[1]",
        ),
        (Heads(LOGITS, LOGITS + 1), r"\(Heads\) .*0 \(2, 3\), 1 \(2, 3\)\. ", "output[0]"),
        (
            SimpleNamespace(boxes=torch.zeros(2, 7, 4), scores=torch.zeros(2, 7, 3), count=7),
            r"\(SimpleNamespace\) .*boxes \(2, 7, 4\), scores \(2, 7, 3\)\. ",
            "output.boxes",
        ),
    ],
    ids=["CLIP", "two heads", "two heads behind a loss", "named heads", "an object"],
)
def test_several_tensors_are_named_with_the_line_that_chooses(output, listed, choice):
    with pytest.raises(TypeError, match=listed) as error:
        extract_logits(output, "the student")
    line = f"With choose = lambda output: {choice}, in Distillation(Teacher(teacher, "
    assert line in str(error.value)
    assert "output_fn=choose), ..., student_output_fn=choose)" in str(error.value)
    assert extract_logits(eval(f"lambda output: {choice}")(output), "the student") is not None


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (LOGITS, None),
        ({"logits": LOGITS, "hidden": torch.ones(2)}, None),
        (Inception(LOGITS, torch.ones(2, 3)), None),
        ((torch.tensor(1.0), LOGITS, None), None),
        ((torch.tensor(1.0), LOGITS, torch.ones(2, 5)), "the first of [1] (2, 3), [2] (2, 5)"),
        (Heads(torch.ones(2, 7, 4), LOGITS), "the first of [0] (2, 7, 4), [1] (2, 3)"),
    ],
)
def test_a_choice_by_place_alone_is_told(output, told):
    assert passed_over(output) == told


@pytest.mark.parametrize("kind", [dict, SimpleNamespace], ids=["mapping", "object"])
def test_both_ends_of_a_span_are_two_rows_of_positions(kind):
    start, end = torch.rand(4, 7), torch.rand(4, 7)
    logits = extract_logits(kind(start_logits=start, end_logits=end), "the student")
    assert logits.shape == (4, 2, 7)
    assert torch.equal(logits[:, 0], start)
    assert torch.equal(logits[:, 1], end)


def test_class_indices_are_no_logits():
    with pytest.raises(TypeError, match="must be floating-point, got torch.int64"):
        extract_logits(torch.zeros(2, dtype=torch.long), "the student")


class Whole(ComposerModel):
    def forward(self, batch):
        self.seen = batch
        return LOGITS

    def loss(self, outputs, batch):
        return outputs.sum()


class Plain(nn.Module):
    def forward(self, inputs):
        self.seen = inputs
        return LOGITS


class Named(nn.Module):
    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=True):
        self.seen = (input_ids, attention_mask, labels, use_cache)
        return LOGITS


class Anything(nn.Module):
    def forward(self, **entries):
        self.seen = entries
        return LOGITS


X, Y = torch.ones(2, 4), torch.tensor([0, 1])
MAPPING = {"input_ids": X, "attention_mask": X + 1, "labels": Y, "extra": Y}


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], X, MAPPING])
def test_a_composer_model_takes_the_whole_batch(batch):
    model = Whole()
    call_model(model, batch)
    assert model.seen is batch


@pytest.mark.parametrize("batch", [(X, Y), [X, Y], X])
def test_a_plain_module_takes_the_input(batch):
    model = Plain()
    call_model(model, batch)
    assert model.seen is X


@pytest.mark.parametrize("batch", [MAPPING, (MAPPING, Y), UserDict(MAPPING)])
def test_a_mapping_becomes_the_keyword_arguments_without_labels_or_cache(batch):
    model = Named()
    call_model(model, batch)
    assert model.seen == (X, MAPPING["attention_mask"], None, False)
    assert set(MAPPING) == {"input_ids", "attention_mask", "labels", "extra"}


def test_a_module_that_takes_anything_gets_all_but_the_labels():
    model = Anything()
    call_model(model, MAPPING)
    assert set(model.seen) == {"input_ids", "attention_mask", "extra"}


def test_a_module_that_names_none_of_the_keys_gets_the_mapping():
    model = Plain()
    call_model(model, MAPPING)
    assert set(model.seen) == {"input_ids", "attention_mask", "extra"}


MAPS, CLASSES_OF_PIXELS = torch.zeros(2, 5, 4, 6), torch.zeros(2, 4, 6, dtype=torch.long)


def llama():
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=40, num_attention_heads=2, **sizes)
    return transformers.LlamaForCausalLM(config)


def test_a_hugging_face_model_gets_no_cache_and_the_keys_that_it_knows():
    """Its forward takes ``**kwargs``, and hands them on."""
    model, seen = llama(), {}
    model.model.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(kwargs, cache=out.past_key_values),
        with_kwargs=True,
    )
    ids = torch.ones(1, 4, dtype=torch.long)
    batch = {"input_ids": ids, "labels": ids, "row": torch.tensor(7), "max_length_q": 4}
    with torch.no_grad():
        answer = call_model(model, batch).logits
        assert torch.equal(answer, model(input_ids=ids, use_cache=False).logits)
        call_model(model, batch)
    assert seen["cache"] is None
    assert seen["use_cache"] is False
    assert "row" not in seen
    assert seen["max_length_q"] == 4  # written down by transformers, as for attention


def test_a_model_reads_over_borders_of_packed_texts_by_a_mask_and_without_a_cache():
    model, seen = llama(), {}
    model.model.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(kwargs, cache=out.past_key_values),
        with_kwargs=True,
    )
    batch = {"input_ids": torch.arange(4)[None], "position_ids": torch.tensor([[0, 1, 0, 1]])}
    call_model(model, batch, over_borders=True)
    assert seen["cache"] is None
    assert seen["attention_mask"].tolist() == [[1] * 4]
    assert batch.keys() == {"input_ids", "position_ids"}
    mask = torch.tensor([[0, 1, 1, 1]])
    call_model(model, {**batch, "attention_mask": mask}, over_borders=True)
    assert seen["attention_mask"] is mask
    embedded = {**batch, "inputs_embeds": torch.zeros(1, 4, 16)}
    del embedded["input_ids"]
    call_model(model, embedded, over_borders=True)
    assert seen["attention_mask"].tolist() == [[1] * 4]


def test_a_model_with_adapters_gets_what_its_base_knows():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = llama()

        def get_base_model(self):
            return self.base

        def forward(self, *args, **kwargs):
            self.seen = kwargs
            return self.base(*args, **kwargs)

    model, ids = Adapted(), torch.ones(1, 4, dtype=torch.long)
    call_model(model, {"input_ids": ids, "row": torch.tensor(7)})
    assert model.seen.keys() == {"input_ids", "use_cache"}
