"""Which teachers are cut into shards, and which Trainers are refused."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer_distill.teachers import sharding
from composer_distill.teachers.sharding import is_to_be_sharded

SIZE = 8  # parameters of the teacher


def teacher(**kwargs):
    return nn.Linear(3, 2, **kwargs)


def state(*, fsdp=None, tp=None):
    return SimpleNamespace(fsdp_config=fsdp, tp_config=tp)


def decide(choice, state, model=None):
    return is_to_be_sharded(teacher() if model is None else model, choice, state, "teacher 0 (Net)")


FSDP = object()


def test_auto_leaves_a_teacher_of_the_stated_size_whole(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_ABOVE", SIZE)
    assert decide("auto", state(fsdp=FSDP)) is False


def test_auto_shards_a_teacher_above_the_stated_size(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_ABOVE", SIZE - 1)
    assert decide("auto", state(fsdp=FSDP)) is True


def test_auto_leaves_every_teacher_whole_beside_a_student_that_is_whole(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_ABOVE", 0)
    assert decide("auto", state()) is False


def test_the_stated_size_is_a_thousand_million_parameters():
    assert sharding.SHARD_ABOVE == 1_000_000_000


def test_frozen_parameters_count_towards_the_size(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_ABOVE", SIZE - 1)
    assert decide("auto", state(fsdp=FSDP), teacher().requires_grad_(False)) is True


def test_sharded_shards_a_teacher_of_any_size():
    assert decide("sharded", state(fsdp=FSDP)) is True


def test_replicated_leaves_a_teacher_of_any_size_whole(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_ABOVE", 0)
    assert decide("replicated", state(fsdp=FSDP)) is False


def test_sharded_beside_a_student_that_is_whole_is_refused_with_both_remedies():
    with pytest.raises(ValueError, match="no FSDP") as error:
        decide("sharded", state())
    assert "parallelism_config={'fsdp': ...}" in str(error.value)
    assert "teacher_sharding='replicated'" in str(error.value)


@pytest.mark.parametrize("choice", ["auto", "replicated", "sharded"])
def test_tensor_parallelism_is_refused(choice):
    with pytest.raises(ValueError, match=r"^Distillation does not support tensor parallelism: "):
        decide(choice, state(fsdp=FSDP, tp=object()))


@pytest.mark.parametrize("choice", ["auto", "replicated", "sharded"])
def test_a_teacher_without_weights_is_refused_by_name(choice):
    with pytest.raises(ValueError, match=r"^teacher 0 \(Net\): .*meta device.*checkpoint="):
        decide(choice, state(fsdp=FSDP), teacher(device="meta"))


def test_a_teacher_without_some_of_its_weights_is_refused():
    model = nn.Sequential(teacher(), nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match="meta device"):
        decide("auto", state(), model)


def test_a_teacher_that_accelerate_offloaded_is_told_what_to_do():
    model = teacher(device="meta")
    next(iter(model.modules()))._hf_hook = object()  # accelerate's mark
    with pytest.raises(ValueError, match=r"teacher 0 .*without device_map.*offload=True") as error:
        decide("auto", state(), model)
    assert "checkpoint=" not in str(error.value)


def test_deciding_leaves_the_teacher_as_it_is():
    model = teacher()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decide("sharded", state(fsdp=FSDP), model)
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
