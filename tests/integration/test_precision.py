"""Teachers answer in the Trainer's precision; the distance is computed in float32.

On the CPU Composer trains in fp32 alone. Here its precision context is replaced everywhere by
autocast to bfloat16 on the CPU, as it is on a GPU; the tests marked ``gpu`` need no stand-in.
"""

import copy
import sys

import composer.core
import pytest
import torch
from integration.harness import (
    Classifier,
    dataset,
    fit,
    forward_kl,
    logged,
    mlp,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, KLDivergence

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Typed(nn.Module):
    """A teacher that keeps the type that each of its answers is computed in."""

    def __init__(self, module):
        super().__init__()
        self.module, self.types = module, []

    def forward(self, inputs):
        logits = self.module(inputs)
        self.types.append(logits.dtype)
        return logits


def small(seed, **kwargs):
    return mlp(seed, dtype=torch.float32, **kwargs)


def data():
    return DataLoader(dataset(20, dtype=torch.float32), batch_size=10)


def bfloat16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.fixture
def autocast_on_cpu(monkeypatch):
    """Put autocast to bfloat16 in the place of Composer's precision context; keep its calls."""
    calls, original = [], composer.core.get_precision_context

    def context(precision, precision_config=None, fp8_autocast_enabled=True):
        calls.append(fp8_autocast_enabled)
        return bfloat16()

    for module in list(sys.modules.values()):
        if vars(module).get("get_precision_context") is original:
            monkeypatch.setattr(module, "get_precision_context", context)
    return calls


def distil(teacher, distance=None, **kwargs):
    return Distillation(teacher, distance or KLDivergence(2.0), 0.7, 0.3, **kwargs)


@pytest.mark.usefixtures("autocast_on_cpu")
def test_a_teacher_answers_in_the_precision_of_the_student():
    teacher, student = Typed(small(1)), Classifier(Typed(small(0)))
    fit(student, distil(teacher), train_dataloader=data(), device_train_microbatch_size=5)
    assert teacher.types == student.module.types == [torch.bfloat16] * 4


def test_in_fp32_a_teacher_answers_in_float32():
    teacher = Typed(small(1))
    fit(Classifier(small(0)), distil(teacher), train_dataloader=data())
    assert teacher.types == [torch.float32] * 2


@pytest.mark.usefixtures("autocast_on_cpu")
@pytest.mark.parametrize(
    ("distance", "atol"),
    # KLDivergence keeps its gradient in bfloat16 and then weighs it: one rounding more
    [(forward_kl(2.0), 1e-6), (KLDivergence(2.0), 2e-3)],
    ids=["a plain loss", "KLDivergence"],
)
def test_autocast_trains_what_a_loop_by_hand_trains(distance, atol):
    teacher, student = small(1), Classifier(small(0))
    expected = copy.deepcopy(student.module)
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5)
    for inputs, targets in data():
        with bfloat16():
            logits = expected(inputs)
            task = F.cross_entropy(logits, targets)
        with torch.no_grad(), bfloat16():
            target = teacher(inputs)
        loss = 0.3 * task + 0.7 * forward_kl(2.0)(logits.float(), target.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    fit(student, distil(teacher, distance), train_dataloader=data())
    torch.testing.assert_close(
        student.module.state_dict(), expected.state_dict(), rtol=1e-4, atol=atol
    )


@pytest.mark.usefixtures("autocast_on_cpu")
def test_autocast_trains_other_weights_than_fp32():
    # or the test above would hold without any autocast
    student = Classifier(small(0))
    fit(student, distil(small(1)), train_dataloader=data())
    expected = train_in_fp32(small(0), small(1))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(
            student.module.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-6
        )


def train_in_fp32(model, teacher):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for inputs, targets in data():
        logits = model(inputs)
        kd = forward_kl(2.0)(logits, teacher(inputs).detach())
        optimizer.zero_grad()
        (0.3 * F.cross_entropy(logits, targets) + 0.7 * kd).backward()
        optimizer.step()
    return model


@pytest.mark.usefixtures("autocast_on_cpu")
@pytest.mark.parametrize("combine", ["logits", "probabilities"])
@pytest.mark.parametrize("n_teachers", [1, 3])
def test_any_distance_is_computed_in_float32_without_autocast(combine, n_teachers):
    seen = []

    class Distance(nn.Module):
        temperature = 2.0

        def forward(self, student, teacher):
            seen.append((student.dtype, teacher.dtype, torch.is_autocast_enabled("cpu")))
            return (student - teacher).square().mean()

    teachers = [small(seed) for seed in range(1, 1 + n_teachers)]
    term = distil(teachers, Distance(), combine=combine)
    fit(Classifier(small(0)), term, train_dataloader=data())
    assert set(seen) == {(torch.float32, torch.float32, False)}


@pytest.mark.usefixtures("autocast_on_cpu")
@pytest.mark.parametrize("microbatch", [10, 5])
def test_logged_values_are_exact_under_autocast(microbatch):
    teacher, student = small(1), Classifier(small(0))
    inputs, _ = next(iter(data()))
    with torch.no_grad(), bfloat16():
        mine, theirs = student.module(inputs), teacher(inputs)
    trainer = fit(
        student,
        distil(teacher),
        train_dataloader=data(),
        max_duration="1ba",
        device_train_microbatch_size=microbatch,
    )
    expected = forward_kl(2.0)(mine.float(), theirs.float()).item()
    assert logged(trainer, "loss/train/kd") == pytest.approx([expected], rel=1e-4)


def test_fp8_is_off_for_teachers_as_in_composers_own_evaluation(autocast_on_cpu):
    fit(Classifier(small(0)), distil(small(1)), train_dataloader=data())
    # student's forward, its loss, the teacher's forward; in each of two batches
    assert autocast_on_cpu == [True, True, False] * 2


def on_gpu(precision, term, **kwargs):
    student = Classifier(small(0, **kwargs))
    trainer = fit(student, term, train_dataloader=data(), device="gpu", precision=precision)
    return trainer, student


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("amp_bf16", torch.bfloat16), ("amp_fp16", torch.float16)],
)
def test_on_a_gpu_a_teacher_answers_in_the_trainers_precision(precision, dtype):
    teacher = Typed(small(1))
    trainer, student = on_gpu(precision, distil(teacher))
    assert set(teacher.types) == {dtype}
    assert all(p.is_cuda for p in teacher.parameters())
    assert all(p.isfinite().all() for p in student.parameters())
    assert len(logged(trainer, "loss/train/kd")) == 2


@needs_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["amp_bf16", "amp_fp16"])
def test_on_a_gpu_values_are_logged_unscaled(precision):
    trainer, _ = on_gpu(precision, distil(small(1)))
    reference, _ = on_gpu("fp32", distil(small(1)))
    for name in ("loss/train/kd", "loss/train/org"):
        assert logged(trainer, name) == pytest.approx(logged(reference, name), rel=0.1), name


@needs_gpu
@pytest.mark.gpu
def test_on_a_gpu_a_noisy_teacher_moves_no_stream():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = small(1)

        def forward(self, inputs):
            torch.rand(7, device=inputs.device)
            return self.module(inputs)

    _, quiet = on_gpu("fp32", distil(small(1)), dropout=0.5)
    _, noisy = on_gpu("fp32", distil(Noise()), dropout=0.5)
    torch.testing.assert_close(noisy.state_dict(), quiet.state_dict(), rtol=0, atol=0)
