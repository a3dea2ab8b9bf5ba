"""How long the teachers take, told without making the host wait."""

import time
from typing import Any

import torch


class Stopwatch:
    """Adds up the time of what it measures, without synchronising the device.

    Args:
        device: Where the work is done: on a GPU its own time counts, else the wall clock's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def reset(self) -> None:
        """Forget what was measured."""
        self._seconds, self._events = 0.0, []

    def start(self) -> Any:
        """Begin to measure; end with ``stop``."""
        return self._mark() if self._on_gpu else time.perf_counter()

    def stop(self, start: Any) -> None:
        """Add what ran since ``start`` returned its value."""
        if self._on_gpu:
            self._events.append((start, self._mark()))
        else:
            self._seconds += time.perf_counter() - start

    def _mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self) -> float:
        """Return what was measured; on a GPU call it when the device has finished the work."""
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1000
