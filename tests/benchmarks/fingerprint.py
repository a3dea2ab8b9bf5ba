"""How fast a fingerprint is, beside reading the same bytes once: ``fingerprint.py [MEGABYTES]``.

Prints for each type of weights the medians of several runs, and their ratio. To read is
``torch.sum`` over the same bytes as 64-bit integers, which does nothing else. Its threads spin for
a moment when it is done, and would hold the cores of the fingerprint's own: each waits till then.
"""

import statistics
import sys
import time

import torch

from composer_distill.weights.fingerprint import fingerprint_of

RUNS = 15
REST = 0.5


def seconds(function, device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def median_seconds(function, device):
    time.sleep(REST)
    return statistics.median(seconds(function, device) for _ in range(RUNS))


def main(megabytes):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(
        f"{megabytes} MB on {device}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    )
    words = torch.randint(-(2**62), 2**62, (megabytes * 125_000,), device=device)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        weight = words.view(dtype)
        read, mark = (
            median_seconds(function, device)
            for function in (words.sum, lambda w=weight: fingerprint_of(["w"], lambda _: w))
        )
        ratio = read / mark
        speeds = f"read {megabytes / 1e3 / read:.1f} GB/s, fingerprint {megabytes / 1e3 / mark:.1f}"
        print(f"{str(dtype).removeprefix('torch.'):9} {speeds} GB/s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
