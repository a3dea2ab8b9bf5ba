"""Every loss of the roster on a device: the values and gradients of float64 on the CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch

_path = Path(__file__).parent.parent / "losses" / "conftest.py"
_spec = importlib.util.spec_from_file_location("roster_of_losses", _path)
assert _spec is not None
assert _spec.loader is not None
roster = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(roster)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def value_and_gradient(loss, student, teacher, mask):
    student = student.detach().clone().requires_grad_()
    labels = roster.labels_of(student).to(student.device) if loss.needs_labels else None
    value = loss(student, teacher, mask=mask, labels=labels)
    return value.item(), torch.autograd.grad(value, student)[0].double().cpu()


@pytest.mark.parametrize("name", roster.ROSTER)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 5), (3, 7, 1000), (4, 50_257)])
def test_values_and_gradients(name, dtype, shape):
    loss = roster.ROSTER[name].make()
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.rand(shape[:-1], generator=generator) < 0.7
    for kept in (None, mask):
        exact = value_and_gradient(loss, student.double(), teacher.double(), kept)
        on_gpu = None if kept is None else kept.cuda()
        value, gradient = value_and_gradient(loss, student.cuda(), teacher.cuda(), on_gpu)
        assert value == pytest.approx(exact[0], rel=1e-4, abs=1e-6)
        error = (gradient - exact[1]).abs().max() / exact[1].abs().max()
        assert error < 1e-4 + 2 * torch.finfo(dtype).eps
