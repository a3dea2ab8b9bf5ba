"""CUDA's streams, modelled on a CPU: which work is ordered, and which is not.

Work is done at once, in program order, as a CPU does it. What is modelled is what a GPU would be
free to do: each operation belongs to the stream that is current, streams run beside each other, and
only events order one behind another. Two operations on one memory, of which one writes, must be
ordered. So must an operation that takes memory and all that was done with what lay there before it
was freed: the allocator of a stream gives memory on in program order. Autograd computes a gradient
on the stream of its operation: so nothing with a gradient may be done aside.
"""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from composer_distill.teachers.lane import Lane
from composer_distill.terms import panel


class Event:
    """A moment of a stream: what is known to be done when it has passed."""

    def __init__(self, done):
        self.done = Counter(done)


class Stream:
    """What is done behind another: a clock for each stream, by which work it waits for."""

    def __init__(self, device=None, *, name="lane"):
        self.name = name
        self.done = Counter()

    def record_event(self):
        return Event(self.done)

    def wait_event(self, event):
        self.done |= event.done

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class Memory:
    """What was done with a storage: who wrote it last, and who read it since, and when."""

    def __init__(self, storage, owner):
        self.owner = owner  # whose allocator it goes back to
        self.alive = StorageWeakRef(storage)
        self.wrote = Counter()
        self.used = Counter()


class Machine(TorchDispatchMode):
    """Watches every operation inside, and notes what a GPU might do in another order."""

    def __init__(self):
        super().__init__()
        self.main = Stream(name="main")
        self.now = self.main
        self.faults = []
        self.apart = []  # of each operation beside the main stream: how much it did not wait for
        self.products = 0  # of matrices, beside the main stream
        self._memory = {}

    def current_stream(self, device=None):
        return self.now

    @contextmanager
    def stream(self, other):
        before, self.now = self.now, other
        try:
            yield
        finally:
            self.now = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.now is not self.main and _has_gradient(args, kwargs):
            self.faults.append(f"{func} on {self.now.name}: its gradient would be computed there")
        if func.is_view:  # which touches no memory
            return func(*args, **kwargs)
        now, name = self.now, str(func)
        now.done[now] += 1
        read, written = _accesses(func, args, kwargs)
        for tensor in read:
            self._use(tensor, name, writes=False)
        for tensor in written:
            self._use(tensor, name, writes=True)
        results = func(*args, **kwargs)
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._use(tensor, name, writes=self._is_new(tensor))
        if now is not self.main:
            self.products += "mm" in name
            self.apart.append(self.main.done[self.main] - now.done[self.main])
        return results

    def _is_new(self, tensor):
        storage = tensor.untyped_storage()
        if storage._cdata in self._memory:
            return False
        for key, memory in list(self._memory.items()):
            if memory.owner is self.now and memory.alive.expired():
                self._order(memory.used | memory.wrote, "memory that was freed")
                del self._memory[key]
        self._memory[storage._cdata] = Memory(storage, self.now)
        return True

    def _use(self, tensor, name, *, writes):
        storage = tensor.untyped_storage()
        # what is older than this watch was made on the main stream
        memory = self._memory.setdefault(storage._cdata, Memory(storage, self.main))
        self._order(memory.wrote | memory.used if writes else memory.wrote, name)
        (memory.wrote if writes else memory.used)[self.now] = self.now.done[self.now]

    def _order(self, accesses, name):
        for stream, number in accesses.items():
            if stream is not self.now and self.now.done[stream] < number:
                self.faults.append(f"{name} on {self.now.name} does not wait for {stream.name}")


@contextmanager
def modelled():
    """Give a machine whose streams stand for those of ``torch.cuda``, with one lane."""
    machine = Machine()
    own = {"Stream": Stream, "current_stream": machine.current_stream, "stream": machine.stream}
    with mock.patch.multiple(torch.cuda, **own):
        machine.lane = Lane(torch.device("cuda"))
        with mock.patch("composer_distill.terms.panel.lane_of") as lane_of:
            nowhere = Lane(panel._NOWHERE)
            lane_of.side_effect = lambda device: (  # of the machine, which a test may exchange
                nowhere if device is panel._NOWHERE else machine.lane
            )
            yield machine


def _has_gradient(args, kwargs):
    leaves = tree_leaves((args, kwargs))
    return any(isinstance(x, Tensor) and x.requires_grad for x in leaves)


def _accesses(func, args, kwargs):
    """The tensors that an operation reads, and those that it writes."""
    read, written = [], []
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | kwargs
    for argument in func._schema.arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        # batch normalisation's schema does not tell that it writes its statistics
        writes |= argument.name.startswith("running_") and bool(given.get("training"))
        leaves = tree_leaves(given.get(argument.name))
        (written if writes else read).extend(x for x in leaves if isinstance(x, Tensor))
    return read, written
