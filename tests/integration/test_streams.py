"""The model of streams sees what the tests of overlapping teachers lean on."""

import pytest
import torch
from integration.streams import Machine, Stream
from torch import nn
from torch.nn import functional as F


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def put(x):
    x[torch.tensor([1])] = 2.0


def normalise(x):
    F.batch_norm(torch.ones(3, 4), x, torch.ones(4), training=True)


def backward(x):
    y = torch.ones(4, requires_grad=True)
    y.grad = x
    (2 * y).sum().backward()


WRITES = {
    "in place": lambda x: x.add_(1),
    "through data": lambda x: x.data.add_(1),
    "a part": lambda x: x[1:].zero_(),
    "at places": put,
    "several": lambda x: torch._foreach_add_([torch.ones(2), x], 1.0),
    "into an output": lambda x: torch.add(torch.ones(4), 1, out=x),
    "statistics": normalise,
    "a gradient": backward,
}
READS = {
    "a sum": lambda x: x.sum(),
    "a part": lambda x: x[:1].exp(),
    "several": lambda x: torch._foreach_add([x], 1.0),
    "a copy": lambda x: x.reshape(2, 2).t().reshape(-1),
    "by the host": lambda x: x[0].item(),
    "a function": Square.apply,
    "a module": nn.Softmax(-1),
}


@pytest.fixture
def machine():
    machine = Machine()
    machine.lane = Stream()
    with machine:
        yield machine


each_pair = pytest.mark.parametrize(
    ("write", "read"),
    [*((write, "a sum") for write in WRITES), *(("in place", read) for read in READS)],
)


@pytest.mark.parametrize("waits", [False, True])
@each_pair
def test_a_reader_has_to_wait_for_a_writer(machine, write, read, waits):
    x = torch.ones(4)
    machine.lane.wait_stream(machine.main)
    WRITES[write](x)
    if waits:
        machine.lane.wait_stream(machine.main)
    with machine.stream(machine.lane):
        READS[read](x)
    assert bool(machine.faults) is not waits


@pytest.mark.parametrize("waits", [False, True])
@each_pair
def test_a_writer_has_to_wait_for_a_reader(machine, write, read, waits):
    x = torch.ones(4)
    machine.lane.wait_stream(machine.main)
    with machine.stream(machine.lane):
        READS[read](x)
    if waits:
        machine.main.wait_stream(machine.lane)
    WRITES[write](x)
    assert bool(machine.faults) is not waits


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("owner", ["main", "lane"])
def test_memory_that_was_freed_is_taken_behind_its_last_use(machine, owner, waits):
    owner, other = (machine.main, machine.lane)[:: 1 if owner == "main" else -1]
    with machine.stream(owner):
        x = torch.ones(4)
    other.wait_stream(owner)
    with machine.stream(other):
        x.sum()
    del x
    if waits:
        owner.wait_stream(other)
    with machine.stream(owner):
        torch.ones(4)
    assert bool(machine.faults) is not waits


@pytest.mark.parametrize("work", [lambda x: x[1:], lambda x: x * 2, Square.apply])
def test_what_has_a_gradient_is_not_done_aside(machine, work):
    x = torch.ones(4, requires_grad=True)
    work(x)
    assert not machine.faults
    machine.lane.wait_stream(machine.main)
    with machine.stream(machine.lane):
        work(x)
    assert machine.faults
