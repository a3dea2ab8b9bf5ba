"""The bars of memory, on a small model; tests/benchmarks/loading.py measures a large one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from composer_distill.teachers import Teacher
from composer_distill.weights.memory import materialize

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "loading.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_keeps_within_its_bars():
    # In a process of its own: here pages of other tests' libraries come and go
    run = subprocess.run([sys.executable, BENCHMARK, "256"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("in all, built on meta") == 4


def test_what_is_shared_on_meta_stays_shared():
    with torch.device("meta"):
        layer = nn.Linear(2, 2)
        model = nn.Sequential(layer, layer, nn.BatchNorm1d(2))
    materialize(model)
    assert model[0] is model[1]
    assert model[0].weight.device.type == "cpu"
    assert model[2].num_batches_tracked.dtype == torch.long


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloaded_weights_visit_the_gpu():
    device = torch.device("cuda")
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    x = torch.randn(3, 4)
    teacher = Teacher(model, offload=True, dtype=torch.bfloat16)
    teacher.freeze()
    teacher.place(device)
    assert all(tensor.device.type == "cpu" and tensor.is_pinned() for tensor in model.parameters())
    with torch.no_grad():
        answer = teacher.forward(x.to(device), lambda m, b: m(b), lambda raw: raw)
    assert answer.device.type == "cuda"
    assert answer.dtype == torch.bfloat16
    assert all(tensor.device.type == "cpu" for tensor in model.parameters())
