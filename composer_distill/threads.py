"""Whole chunks over threads, instead of each operation of each chunk.

torch spreads an operation over its threads and waits for the last of them. A chunk's operations are
so short that where another process holds one core for a moment, all threads wait at each of them.
Here each thread takes the next chunk when it has done one, and torch computes on it alone.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_MOST = 8  # more would wait for each other to start their operations
_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
os.register_at_fork(after_in_child=_pools.clear)  # a child has the parent's memory, not its threads

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def spread(work: Callable[[Piece], Result], pieces: Sequence[Piece], threads: int) -> list[Result]:
    """Return what ``work`` makes of each piece, in the order of the pieces.

    Args:
        work: Runs without gradients and autocast; it may write where no other piece does.
        pieces: What it is called with.
        threads: How many threads there are to compute on.
    """
    threads = min(threads, _MOST, len(pieces))
    if threads <= 1:
        return [work(piece) for piece in pieces]

    def without_gradients(piece: Piece) -> Result:
        with torch.no_grad():  # each thread has a mode of its own
            return work(piece)

    return list(_pool(threads).map(without_gradients, pieces))


def second_level_cache() -> int:
    """Return the bytes of cache that a core has to itself: 1 MiB where the system does not say."""
    try:
        found = os.sysconf("SC_LEVEL2_CACHE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on Linux
        found = 0
    return min(max(found, 2**19), 2**22) if found > 0 else 2**20


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = _start(threads)
        return _pools[threads]


def _start(threads: int) -> ThreadPoolExecutor:
    """Return a pool whose threads all run, each with one thread of torch's."""
    before = torch.get_num_threads()
    ready = threading.Barrier(threads + 1)

    def settle() -> None:
        torch.get_num_threads()  # a thread's first question sets its number to that of all
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(threads, "composer_distill", initializer=settle)
    for _ in range(threads):
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(before)  # what other threads begin with is one number for all
    return pool
