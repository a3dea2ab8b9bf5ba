"""Seconds are arithmetic: against numbers worked out by hand, and torch's count."""

from dataclasses import replace

import pytest
import torch
from planning.measuring import LLAMA, model
from torch.utils.flop_counter import FlopCounterMode

from composer_distill.planning.cost import BETWEEN_NODES, GPUS, Gpu, seconds
from composer_distill.planning.memory import Plan
from composer_distill.planning.shapes import SHAPES

ONE = Gpu(memory=1.0, speed=1.0, network=1.0, host=1.0)


def test_operations_are_those_that_torch_counts():
    shape, length = replace(LLAMA, vocab=400), 64
    ids = torch.zeros(2, length, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(shape)(input_ids=ids)
    plan = Plan(shape, shape, "student cut", gpus=1, rows=2, length=length, precision="bf16")
    found = seconds(plan, ONE, 1.0)
    # torch does not count attention on a CPU: two products, each of half of the pairs of positions
    attention = 2 * 2.0 * shape.layers * plan.tokens * length / 2 * shape.hidden
    matrices = found.teacher - attention
    assert matrices == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert found.student == pytest.approx(3 * found.teacher)
    anew = seconds(replace(plan, checkpointing=True), ONE, 1.0)
    assert anew.student == pytest.approx(4 * found.teacher)


def test_bytes_of_the_network_and_of_the_host():
    plan = Plan(SHAPES["1b"], SHAPES["8b"], "student cut", gpus=4, microbatches=2)
    student, teacher = (shape.parameters for shape in (plan.student, plan.teacher))
    cut = seconds(plan, ONE, 1.0)
    assert cut.network == pytest.approx(2 * 3 * 2 * student * 3 / 4)
    assert cut.host == 0.0
    both = seconds(replace(plan, layout="both cut"), ONE, 1.0)
    assert both.network - cut.network == pytest.approx(2 * 2 * teacher * 3 / 4)
    whole = seconds(replace(plan, layout="whole"), ONE, 1.0)
    assert whole.network == pytest.approx(2 * 4 * student * 3 / 4)
    brought = seconds(replace(plan, layout="offloaded"), ONE, 1.0)
    assert brought.host == pytest.approx(2 * 2 * teacher)
    kept = seconds(replace(plan, layout="cached"), ONE, 1.0)
    assert (kept.teacher, kept.host, kept.network) == (0.0, 0.0, cut.network)


def test_a_step_waits_for_the_slower_of_network_and_gpu_and_for_the_host():
    plan, gpu = Plan(SHAPES["1b"], SHAPES["8b"], "offloaded"), GPUS["h100"]
    found = seconds(plan, gpu, 0.4)
    assert found.total == max(found.student + found.teacher, found.network) + found.host
    assert seconds(plan, gpu, 0.2).student == pytest.approx(2 * found.student)
    far = seconds(replace(plan, gpus=16), gpu, 0.4)
    share = (15 / 16) / (7 / 8)
    assert far.network / found.network == pytest.approx(share * gpu.network / BETWEEN_NODES)
