from collections import OrderedDict, UserDict
from types import SimpleNamespace

import pytest
import torch
from composer.models import ComposerModel
from torch import nn

from composer_distill.teachers.outputs import (
    call_model,
    check_class_axis,
    check_shapes,
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


def test_shapes_that_agree_pass():
    check_shapes(LOGITS, LOGITS + 1, "teacher 0 (x)")


def test_other_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"teacher 1 \(resnet101\): its logits have shape \(8, 21\)"
    ) as error:
        check_shapes(torch.zeros(8, 10), torch.zeros(8, 21), "teacher 1 (resnet101)")
    assert "where the student's have (8, 10)" in str(error.value)
    assert "The class axes differ" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 10), (8, 1, 10), (10,)])
def test_other_positions_are_refused_though_torch_would_broadcast(shape):
    with pytest.raises(ValueError, match="same positions"):
        check_shapes(torch.zeros(8, 10), torch.zeros(shape), "teacher 0 (x)")


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


def test_classes_on_axis_1_and_a_loss_over_the_last_are_refused():
    with pytest.raises(ValueError, match=r"lie on axis 1. Pass the loss with dim=1"):
        check_class_axis((X, CLASSES_OF_PIXELS), MAPS, -1)


@pytest.mark.parametrize(
    ("batch", "logits", "axis"),
    [
        ((X, CLASSES_OF_PIXELS), MAPS, 1),
        ((X, CLASSES_OF_PIXELS), MAPS.movedim(1, -1), -1),
        ((X, Y), LOGITS, -1),
        ((X, None), MAPS, -1),
        (X, MAPS, -1),
        (MAPPING, MAPS, -1),
    ],
)
def test_classes_where_the_loss_takes_them_pass(batch, logits, axis):
    check_class_axis(batch, logits, axis)
