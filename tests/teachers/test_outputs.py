from collections import OrderedDict, UserDict
from types import SimpleNamespace

import pytest
import torch
from composer.models import ComposerModel
from torch import nn

from composer_distill.teachers.outputs import (
    call_model,
    extract_logits,
)

LOGITS = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "hidden": torch.ones(2)},
        OrderedDict(loss=torch.tensor(1.0), logits=LOGITS),
        UserDict(logits=LOGITS, loss=torch.tensor(1.0)),
        {"out": LOGITS},
        SimpleNamespace(logits=LOGITS),
        (LOGITS, torch.ones(1)),
        (torch.tensor(1.0), LOGITS, None),
        [None, LOGITS],
    ],
)
def test_finds_the_logits(output):
    assert extract_logits(output, "the student") is LOGITS


@pytest.mark.parametrize(
    ("output", "came"),
    [
        ({"a": LOGITS, "b": LOGITS}, r"dict with the keys \['a', 'b'\]"),
        (None, "NoneType"),
        ("logits", "str"),
        ((torch.tensor(1.0),), "tuple"),
    ],
)
def test_names_the_owner_where_there_are_no_logits(output, came):
    with pytest.raises(TypeError, match=f"teacher 1 .x.: its output must be a tensor.*{came}"):
        extract_logits(output, "teacher 1 (x)")


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
