"""Files that change while they are read, and after."""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from composer_distill.teachers import Teacher, load_weights
from composer_distill.weights import checkpoint


def overwrite(path):
    """Write other bytes into the file itself, as a program does that saves in place."""
    with path.open("r+b") as stream:
        half = path.stat().st_size // 2
        stream.seek(half)
        stream.write(b"\x11" * half)


def write(model, path):
    if path.suffix == ".safetensors":
        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)


class Keeping(nn.Linear):
    """Keeps the tensors that it is given, and not only their values."""

    def _load_from_state_dict(self, *arguments):
        state_dict, prefix = arguments[:2]
        self.weight = nn.Parameter(state_dict[f"{prefix}weight"])
        self.kept = state_dict[f"{prefix}bias"][:1]


@pytest.mark.parametrize("layer", [nn.Linear, Keeping])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_weights_stay_when_the_file_is_overwritten(tmp_path, layer, name):
    source, fresh = nn.Linear(300, 300), layer(300, 300)
    write(source, tmp_path / name)
    load_weights(fresh, tmp_path / name)
    overwrite(tmp_path / name)
    assert torch.equal(fresh.weight, source.weight)
    if layer is Keeping:
        assert torch.equal(fresh.kept, source.bias[:1])


@pytest.mark.parametrize("safe", [True, False])
def test_weights_of_from_pretrained_stay_too(zoo, tmp_path, safe):
    """transformers leaves them mapped."""
    model = zoo.bert()
    model.save_pretrained(tmp_path, safe_serialization=safe)
    teacher = Teacher.from_pretrained(tmp_path)
    for path in (*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.bin")):
        overwrite(path)
    assert zoo.same(teacher.model, model)


def test_tied_weights_of_from_pretrained_stay_tied(zoo, tmp_path):
    zoo.gpt().save_pretrained(tmp_path)
    model: Any = Teacher.from_pretrained(tmp_path).model
    assert model.lm_head.weight is model.transformer.wte.weight


def read_and(monkeypatch, act):
    """Let something happen between the first and the second weight that are read."""
    original, calls = checkpoint.release, []

    def released(weight):
        original(weight)
        calls.append(act()) if not calls else None

    monkeypatch.setattr(checkpoint, "release", released)


def test_a_file_that_is_written_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    write(nn.Linear(300, 300), path)
    read_and(monkeypatch, lambda: overwrite(path))
    with pytest.raises(
        ValueError, match=r"the expert: .*a\.pt was written while it was read; load"
    ):
        load_weights(nn.Linear(300, 300), path, name="the expert")


@pytest.mark.parametrize("act", [os.unlink, lambda path: os.replace(path.with_name("b"), path)])
def test_a_file_that_is_replaced_or_removed_meanwhile_is_read_as_it_was(tmp_path, monkeypatch, act):
    path, source, fresh = tmp_path / "a.pt", nn.Linear(300, 300), nn.Linear(300, 300)
    write(source, path)
    write(nn.Linear(300, 300), tmp_path / "b")
    read_and(monkeypatch, lambda: act(path))
    load_weights(fresh, path)
    assert torch.equal(fresh.weight, source.weight)
    assert torch.equal(fresh.bias, source.bias)


CUT = """
import os, sys, torch
from torch import nn
from composer_distill.weights import checkpoint
make = lambda: nn.Sequential(*[nn.Linear(500, 500) for _ in range(4)])
torch.save(make().state_dict(), sys.argv[1])
original = checkpoint.release
def release(weight):
    original(weight)
    os.truncate(sys.argv[1], 1000)
checkpoint.release = release
try:
    checkpoint.load_weights(make(), sys.argv[1], name="the expert")
except ValueError as error:
    print(error)
"""


def test_a_file_that_is_cut_meanwhile_is_an_error_and_no_crash(tmp_path):
    command = [sys.executable, "-c", CUT, str(tmp_path / "a.pt")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "the expert: " in run.stdout
    assert "a.pt was cut while it was read; load it again" in run.stdout
