"""Time, memory and share of the copy bandwidth of the forward and the reverse KL on a device.

Contestants are interleaved, each time is an event's, and each row tells the median of the repeats
with its quartiles. The share is that of the device's own copy of a large tensor, counting two reads
of the inputs and one write of the gradient.
"""

import importlib
import time
from collections.abc import Callable

import torch
from gpu.device import DEVICE, DRY, milliseconds, peak_bytes, quartiles, row
from torch.nn import functional as F

from composer_distill import losses
from composer_distill.losses import fused_rows

SHAPES = [(8192, 32000), (8192, 128_256), (4096, 50_257), (1024, 1000), (256, 10)]
TOY = [(8, 40), (4, 10)]
REPEATS, BUDGET = (2, 5.0) if DRY else (15, 120.0)
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    log_q, p = student.float().log_softmax(-1), teacher.float().softmax(-1)
    return F.kl_div(log_q, p, reduction="sum") / student.shape[0]


def ours(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return losses.kl_divergence(student, teacher, temperature=1.0)


def reverse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    return losses.reverse_kl_divergence(student, teacher)


def without_kernel(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    can_run, fused_rows.can_run = fused_rows.can_run, lambda *_: False
    try:
        return ours(student, teacher)
    finally:
        fused_rows.can_run = can_run


def contestants() -> dict[str, Loss]:
    found: dict[str, Loss] = {"plain": plain, "chunked": without_kernel, "triton": ours}
    found["triton reverse"] = reverse
    if not DRY:
        found["torch.compile"] = torch.compile(plain, dynamic=False)
    try:
        liger = importlib.import_module("liger_kernel.transformers").LigerKLDIVLoss("batchmean")
        found["Liger"] = lambda s, t: liger(s.float().log_softmax(-1), t.float().softmax(-1))
    except ImportError:
        row("Liger is absent")
    return found


def copy_bandwidth() -> float:
    """Return bytes a second, read and written, of a copy."""
    size = 2**20 if DRY else 2**30
    source = torch.empty(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source)) for _ in range(10)]
    return 2e3 * size / quartiles(times)[1]


def compare(shape: tuple[int, int], dtype: torch.dtype, bandwidth: float) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    kwargs = {"generator": generator, "device": DEVICE}
    student = torch.randn(*shape, **kwargs).to(dtype).requires_grad_()
    teacher = torch.randn(*shape, **kwargs).to(dtype)
    least = 5 * student.numel() * student.element_size() / bandwidth * 1e3

    def step(loss: Loss) -> Callable[[], None]:
        def forward_and_backward() -> None:
            student.grad = None
            loss(student, teacher).backward()

        return forward_and_backward

    steps, peaks, times = {}, {}, {}
    for name, loss in contestants().items():
        try:
            step(loss)()
            peaks[name] = peak_bytes(step(loss)) / (student.numel() * student.element_size())
            steps[name], times[name] = step(loss), []
        except torch.OutOfMemoryError:
            row(name, shape=shape, out_of_memory=True)
    for _ in range(REPEATS):
        for name, run in steps.items():
            times[name].append(milliseconds(run))
    for name, measured in times.items():
        low, middle, high = quartiles(measured)
        row(
            name,
            shape=f"{shape[0]} x {shape[1]}",
            type=str(dtype).removeprefix("torch."),
            ms=round(middle, 3),
            quartiles=[round(low, 3), round(high, 3)],
            of_bandwidth=round(least / middle, 2),
            peak_student_tensors=round(peaks[name], 2),
        )


def main() -> None:
    start, bandwidth = time.monotonic(), copy_bandwidth()
    row("copy", gigabytes_a_second=round(bandwidth / 1e9))
    for dtype in (torch.bfloat16, torch.float32):
        for shape in TOY if DRY else SHAPES:
            if time.monotonic() - start < BUDGET:
                compare(shape, dtype, bandwidth)
            else:
                row("left out for time", shape=shape, type=str(dtype))


if __name__ == "__main__":
    main()
