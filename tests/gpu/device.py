"""What the parts of ``run`` share: the device, its clock, and rows of JSON."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import version

DRY = os.environ.get("GPU_DRY_RUN") == "1"
DEVICE = torch.device("cpu" if DRY or not torch.cuda.is_available() else "cuda")


def machine() -> dict[str, str]:
    """Return the names and versions that a number needs beside it."""
    import composer
    import transformers

    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "absent"
    found |= {"composer": composer.__version__, "transformers": transformers.__version__}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
        found["cuda"] = str(version.cuda)
    return found


def row(name: str, **values: Any) -> None:
    """Print a row at once, so that it survives what comes after it."""
    print(json.dumps({"row": name, "what": name, **values}), flush=True)


def synchronise() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def milliseconds(run: Callable[[], object]) -> float:
    """Return the time of one run, by the device's own events where it has them."""
    if DEVICE.type == "cuda":
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        stream = torch.cuda.current_stream()
        begin.record(stream)
        run()
        end.record(stream)
        torch.cuda.synchronize()
        return begin.elapsed_time(end)
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the most bytes that a run holds beyond what was there before; 0 on a CPU."""
    if DEVICE.type != "cuda":
        run()
        return 0
    synchronise()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    synchronise()
    return torch.cuda.max_memory_allocated() - before
