"""Matching of names: exact, then one known prefix."""

import pytest
import torch

from composer_distill.weights.contents import Spec
from composer_distill.weights.keys import PREFIXES, match_keys

SPEC = Spec((2,), torch.float32)


def specs(*names):
    return dict.fromkeys(names, SPEC)


def test_exact_names_come_first():
    match = match_keys(specs("module.a", "module.b"), specs("module.a", "module.b"))
    assert match.complete
    assert match.change == ""


@pytest.mark.parametrize("prefix", PREFIXES)
def test_one_prefix_is_removed_or_added(prefix):
    bare, wrapped = specs("a", "b"), specs(f"{prefix}a", f"{prefix}b")
    removed, added = match_keys(bare, wrapped), match_keys(wrapped, bare)
    assert removed.complete
    assert removed.pairs == {"a": f"{prefix}a", "b": f"{prefix}b"}
    assert removed.change == f"the prefix {prefix!r} was removed from the file's keys"
    assert added.complete
    assert added.change == f"the prefix {prefix!r} was added to the file's keys"


def test_the_compiler_prefix_is_removed_inside_a_name():
    assert match_keys(specs("module.a"), specs("module._orig_mod.a")).complete


def test_two_prefixes_are_too_many():
    assert not match_keys(specs("a"), specs("model.module.a")).complete


def test_names_that_would_fall_together_are_not_renamed():
    match = match_keys(specs("a", "b"), specs("a", "module.a"))
    assert match.change == ""
    assert match.unexpected == ["module.a"]


def test_an_incomplete_match_reports_the_closest_reading():
    match = match_keys(specs("a", "b", "c"), specs("module.a", "module.b", "module.x"))
    assert match.missing == ["c"]
    assert match.unexpected == ["module.x"]
    assert "removed" in match.change


def test_one_of_several_names_of_a_tensor_is_enough():
    assert match_keys(specs("a", "b"), specs("a"), [frozenset({"a", "b"})]).complete
    assert not match_keys(specs("a", "b"), specs("a")).complete


def test_the_attribute_of_a_wrapper_is_taken_off():
    spec = Spec((2,), torch.float32)
    match = match_keys({"0.weight": spec}, {"backbone.0.weight": spec})
    assert match.complete
    assert match.pairs == {"0.weight": "backbone.0.weight"}
    assert match.change == "the prefix 'backbone.' was removed from the file's keys"
    several = match_keys({"0.weight": spec}, {"backbone.0.weight": spec, "head.weight": spec})
    assert not several.complete
