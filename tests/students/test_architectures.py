"""Students of every architecture that can be built small: what they compute, write and read."""

import contextlib
import copy
import os
from collections import defaultdict

import pytest
import torch
import transformers
from students.architectures import (
    KEPT,
    KINDS,
    NOT_READ_BACK,
    NOT_WALKED,
    OWN,
    REFUSED,
    SAMPLE,
    WORDS,
    tiny,
    walked,
)

from composer_distill import student_from_teacher
from composer_distill.students.layers import stacks_of

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers' models

EVERY = os.environ.get("EVERY_ARCHITECTURE") == "1"


@pytest.fixture(autouse=True)
def _quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def words():
    return torch.randint(3, WORDS, (2, 8), generator=torch.Generator().manual_seed(1))


def logits_of(kind, model):
    ids = words()
    inputs = {"input_ids": ids}
    if kind == "seq2seq":
        inputs["decoder_input_ids"] = ids.flip(1)
    if kind != "masked":
        inputs["use_cache"] = False
    with torch.no_grad():
        return model(**inputs)[0]


def skip(layer):
    """Replace what a layer computes by what it is given."""
    compute = layer.forward

    def forward(*arguments, **named):
        found = compute(*arguments, **named)
        given = arguments[0] if arguments else named["hidden_states"]
        if isinstance(found, torch.Tensor):
            return given
        if isinstance(found, dict):
            return {"feature_map": given}
        rest = list(found[1:])
        if len(arguments) > 1 and type(layer).__name__ == "PegasusXEncoderLayer":
            rest[0] = arguments[1]  # a second stream, of global tokens
        return type(found)([given, *rest])

    layer.forward = forward


def without_layers(teacher, kept):
    teacher = copy.deepcopy(teacher)
    for stack in stacks_of(teacher):
        for index, layer in enumerate(teacher.get_submodule(stack.path)):
            if index not in kept:
                skip(layer)
    return teacher


def ties(model):
    """The names of weights that share memory."""
    names = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter.data_ptr()].add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


def written(model, cached):
    ids = words()
    return model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=cached)


def writes_alike(model):
    """Whether a model writes the same with a cache and without; None where it can't write."""
    with contextlib.suppress(Exception):  # of models that transformers itself can't run any more
        return torch.equal(written(model, True), written(model, False))
    return None


@pytest.mark.parametrize(("kind", "model_type"), list(walked(EVERY)))
def test_a_student_is_its_teacher_without_the_other_layers(kind, model_type, tmp_path):
    teacher = tiny(kind, model_type)
    kept = KEPT.get(model_type, [0, 2, 4])
    if model_type in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[model_type]):
            student_from_teacher(teacher, kept)
        return
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    stream = torch.get_rng_state()
    student = student_from_teacher(teacher, kept)

    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    memory = {weight.data_ptr() for weight in teacher.parameters() if weight.numel()}
    assert memory.isdisjoint(weight.data_ptr() for weight in student.parameters())
    answer = logits_of(kind, student)
    assert torch.equal(answer, logits_of(kind, without_layers(teacher, kept)))
    assert not torch.equal(answer, logits_of(kind, teacher))
    assert all(tied in ties(teacher) for tied in ties(student))
    assert bool(ties(student)) == bool(ties(teacher))

    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path).eval()
    if model_type not in NOT_READ_BACK:
        assert torch.equal(logits_of(kind, again), answer)
    assert again.config.to_dict().keys() == student.config.to_dict().keys()
    if kind != "masked" and writes_alike(teacher):
        assert writes_alike(student)
        if model_type not in NOT_READ_BACK:
            assert torch.equal(written(student, True), written(again, True))


def test_every_architecture_is_walked_or_listed():
    for kind, names in KINDS.items():
        known = {model_type for walked_kind, model_type in walked(True) if walked_kind == kind}
        missing = {n for n in names if hasattr(transformers, KINDS[kind][n])} - known
        assert missing <= set(NOT_WALKED)
        assert set(SAMPLE[kind].split()) <= known
    assert set(KEPT) | set(REFUSED) | set(OWN) - set(NOT_WALKED) <= {
        model_type for _, model_type in walked(True)
    }
