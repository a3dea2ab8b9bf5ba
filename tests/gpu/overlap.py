"""A teacher beside the student on a device: the same bits, and no race for PyTorch's sanitizer.

``--watched`` trains under that sanitizer, in a process of its own, since it must be on from the
start; then once more with a lane that the student does not wait for, which it must see.
"""

import os
import subprocess
import sys
import traceback
import warnings

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product

import torch
from gpu.device import DEVICE, DRY, row
from integration.test_overlap import WORK, NoEnd, train

from composer_distill.teachers import lane
from composer_distill.terms import panel

NAMES = ("one teacher", "text", "text, fused", "text, features", "moving average", "mixed before")
ON = {"device": "gpu"} if DEVICE.type == "cuda" else {}


def same_bits(name: str) -> bool:
    """Train with and without overlap; print whether the weights are the same."""
    beside, behind = (train(WORK[name][0], overlap, **ON).state.model for overlap in (True, False))
    pairs = zip(beside.state_dict().values(), behind.state_dict().values(), strict=True)
    same = all(torch.equal(one, other) for one, other in pairs)
    row(f"overlap, {name}", same_bits=same)
    return same


def fault(name: str) -> str:
    """Train with overlap; return the sanitizer's words, or nothing."""
    try:
        train(WORK[name][0], overlap=True, **ON)
    except Exception:
        return traceback.format_exc()[-300:]
    return ""


def watched() -> bool:
    """Return whether the sanitizer sees nothing, and then a lane that nobody waits for."""
    clean = {name: fault(name) for name in NAMES}
    for name, words in clean.items():
        row(f"sanitizer, {name}", fault=words)
    broken = NoEnd(DEVICE)
    panel.lane_of = lambda device: broken if device.type == "cuda" else lane.lane_of(device)
    seen = bool(fault("one teacher"))
    row("sanitizer, a lane that nobody waits for", seen=seen)
    return seen and not any(clean.values())


def main() -> bool:
    torch.use_deterministic_algorithms(True, warn_only=True)
    well = [same_bits(name) for name in NAMES]
    if DRY or DEVICE.type != "cuda":
        return all(well)  # the sanitizer watches a GPU alone
    command = [sys.executable, "-m", "gpu.overlap", "--watched"]
    environment = {**os.environ, "TORCH_CUDA_SANITIZER": "1"}
    return all(well) and subprocess.run(command, env=environment, check=False).returncode == 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(not (watched() if "--watched" in sys.argv else main()))
