"""Predicted against measured: real runs on a CPU, of unlike shapes."""

from dataclasses import replace

import pytest
from integration.test_processes import launch
from planning.measuring import LLAMA, SMALL, TEACHER, measured_peak, model

from composer_distill.planning.memory import LAYOUTS, Plan, moments, peak
from composer_distill.planning.shapes import Shape

pytestmark = pytest.mark.filterwarnings("ignore")  # of the profiler's and of other packages' own
WITHIN = 0.10
GPT2 = Shape(layers=4, hidden=64, vocab=2000, heads=4, positions=64, tied=True, gated=False)
DEEP = replace(LLAMA, layers=8, vocab=500, hidden=128, intermediate=384)


def of(student, teacher=TEACHER, **more):
    return replace(SMALL, student=student, teacher=replace(teacher, vocab=student.vocab), **more)


PLANS = {
    "a large vocabulary": SMALL,
    "deep": of(DEEP, rows=8),
    "deep, activations computed anew": of(DEEP, rows=12, checkpointing=True),
    "weights above all": of(replace(DEEP, vocab=2000), rows=1, length=32),
    "half of the positions, tied, with few heads for keys": of(
        replace(LLAMA, tied=True, kv_heads=2), kept=0.5
    ),
    "two microbatches": of(replace(DEEP, layers=4, vocab=2000), microbatches=2),
    "gpt2": of(GPT2, replace(GPT2, hidden=96), rows=8),
    "bfloat16": of(replace(LLAMA, vocab=2000), rows=8, precision="bf16", teacher_bytes=2),
    "autocast": of(replace(LLAMA, vocab=2000), rows=8, precision="amp_bf16", teacher_bytes=2),
    "fused": of(LLAMA, rows=8, fused=True),
    "cached": of(LLAMA, layout="cached"),
}


@pytest.mark.parametrize("name", PLANS)
def test_the_peak_is_the_measured_one(name, tmp_path):
    plan = PLANS[name]
    for shape in (plan.student, plan.teacher):
        assert shape.parameters == sum(p.numel() for p in model(shape).parameters())
    moment, parts = peak(plan)
    found = measured_peak(plan, tmp_path / "answers")
    ratio = sum(parts.values()) / found
    print(f"{name}: {found / 1e6:.1f} MB measured, {ratio:.3f} of it predicted, {moment}")
    assert abs(ratio - 1.0) < WITHIN, (moment, parts)


def test_each_moment_was_a_measured_peak_but_for_those_that_are_told_here():
    found = {peak(plan)[0] for plan in PLANS.values()}
    assert set(moments(SMALL)) - found == {
        "the student's own loss",
        "the teacher's forward",
        "the backward of the head",
        "the backward of the last block",
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return launch("planned.py", tmp_path_factory.mktemp("planned"))


@pytest.mark.parametrize("rank", [0, 1])
def test_shards_are_as_large_as_on_two_processes(ranks, rank):
    measured = ranks("fsdp2", rank)
    plan = replace(SMALL, gpus=2, layout="both cut")
    parts = moments(plan)["the optimizer's step"]
    assert measured["student's weights"] == parts["student's weights"]
    assert measured["teacher's weights"] == parts["teacher's weights"]
    steps = measured["optimizer"] - parts["optimizer"]  # a count for each weight
    assert 0 <= steps < 1000


def test_what_a_layout_spares():
    large = Plan(Shape(16, 2048, 128256, 32, 8192), Shape(32, 4096, 128256, 32, 14336), gpus=8)
    sums = {layout: sum(peak(replace(large, layout=layout))[1].values()) for layout in LAYOUTS}
    assert sums["cached"] < sums["both cut"] < sums["offloaded"] < sums["student cut"]
    assert sums["student cut"] < sums["whole"]
    weights = large.teacher_bytes * large.teacher.parameters
    by_moment = moments(replace(large, layout="offloaded"))
    assert by_moment["the teacher's forward"]["teacher's weights"] == weights
    assert "teacher's weights" not in by_moment["the distillation loss"]
