"""Time and peak memory of the losses, forward plus backward, beside other implementations.

    python tests/benchmarks/losses.py [--threads 2] [--repeats 7] [--only large,busy] [--json OUT]

Every number is a ratio inside one run: contestants are interleaved, and each ratio is the median
over the repeats of its time over the plain expression's in the same repeat, with the quartiles.
Large vocabularies are measured on one thread and on all, and on all beside one busy process.
Peak memory counts what is allocated beyond the inputs on one thread, in student-logit tensors; each
further thread adds the five tensors of its chunk, at most a row of float32 or 256 KiB each. Peers
are those of the ``peers`` extra; what is not installed is named as absent.
"""

import argparse
import gc
import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from composer_distill import losses

warnings.simplefilter("ignore")
Contestants = dict[str, Callable[[], torch.Tensor]]
VERDICTS: list[tuple[str, float, float, bool]] = []


def processor() -> str:
    """Return the processor's name and the cache that a core has to itself, where they are told."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
        cache = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return f"{name}, {torch.backends.cpu.get_cpu_capability()}, {cache}iB second-level cache"
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def where() -> str:
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' if threads > 1 else ''}"


def plain(student, teacher):
    log_q, p = student.float().log_softmax(-1), teacher.float().softmax(-1)
    return F.kl_div(log_q, p, reduction="sum") / student.shape[0]


def peers(student, teacher) -> tuple[Contestants, list[str]]:
    """Return the peers' forward KL on (N, C) logits, and the names of those absent."""
    found, absent = {}, []
    try:
        from torchtune.modules.loss import ForwardKLWithChunkedOutputLoss

        tune, labels = ForwardKLWithChunkedOutputLoss(), torch.zeros(1, len(student)).long()
        found["torchtune"] = lambda: tune(
            list(student[None].chunk(8, 1)), list(teacher[None].chunk(8, 1)), labels
        )
    except ImportError:
        absent.append("torchtune")
    try:
        from trl.trainer.gkd_trainer import GKDTrainer

        jsd = GKDTrainer.generalized_jsd_loss
        found["TRL"] = lambda: jsd(student[None], teacher[None], beta=0.0)
    except ImportError:
        absent.append("trl")
    try:
        from modelopt.torch.distill import LogitsDistillationLoss

        opt = LogitsDistillationLoss(temperature=1.0, reduction="batchmean")
        found["ModelOpt"] = lambda: opt(student, teacher)
    except ImportError:
        absent.append("nvidia-modelopt")
    return found, absent


def step(run: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Callable[[], None]:
    def forward_and_backward():
        for leaf in leaves:
            leaf.grad = None
        value = run()
        if value.requires_grad:
            value.backward()

    return forward_and_backward


def peak_bytes(run: Callable[[], None]) -> int:
    """Return the most bytes allocated at one time beyond what there was before."""
    gc.collect()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the profiler sees what the calling thread allocates
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    torch.set_num_threads(threads)
    changes = [
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    held = most = 0
    for _, change in sorted(changes, key=lambda pair: pair[0]):
        held += change
        most = max(most, held)
    return most


def seconds(run: Callable[[], None], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def compare(contestants: Contestants, leaves, repeats, calls=1):
    """Return for each: the median ratio to the first, its quartiles, milliseconds, peak bytes."""
    steps = {name: step(run, leaves) for name, run in contestants.items()}
    peaks = {}
    for name, run in steps.items():
        run()  # warm up, compile
        for leaf in leaves:
            leaf.grad = None
        peaks[name] = peak_bytes(run)
    times = {name: [] for name in steps}
    for _ in range(repeats):
        for name, run in steps.items():
            times[name].append(seconds(run, calls))
    base = next(iter(times.values()))
    result = {}
    for name, measured in times.items():
        ratios = [ours / theirs for ours, theirs in zip(measured, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        milliseconds = 1e3 * statistics.median(measured)
        result[name] = (middle, low, high, milliseconds, peaks[name])
    return result


def show(title, result, unit):
    print(f"\n### {title}\n\n{where()}\n\n| | time / plain | quartiles | ms | peak (tensors) |")
    print("|---|---|---|---|---|")
    for name, (ratio, low, high, milliseconds, peak) in result.items():
        spread, size = f"{low:.2f} to {high:.2f}", f"{peak / unit:.2f}"
        print(f"| {name} | {ratio:.2f} | {spread} | {milliseconds:.2f} | {size} |")
    sys.stdout.flush()


def bar(what, measured, limit):
    VERDICTS.append((what, measured, limit, measured <= limit))


def pair(n, c, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(n, c, generator=generator).mul(2).to(dtype)
    teacher = torch.randn(n, c, generator=generator).mul(2).to(dtype)
    return student.requires_grad_(), teacher


LARGE = [
    (n, c, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for n, c in ((1024, 32000), (256, 128256))
]


def large(repeats):
    threads = torch.get_num_threads()
    for n, c, dtype in LARGE:
        large_vocabulary(n, c, dtype, repeats)
        if threads > 1:
            torch.set_num_threads(1)
            large_vocabulary(n, c, dtype, repeats, beside_peers=False)
            torch.set_num_threads(threads)


def large_vocabulary(n, c, dtype, repeats, beside_peers=True):
    student, teacher = pair(n, c, dtype)
    unit = student.numel() * student.element_size()
    torch.compiler.reset()
    compiled = torch.compile(plain)
    found, absent = peers(student, teacher) if beside_peers else ({}, [])
    contestants = {
        "plain": lambda: plain(student, teacher),
        "KLDivergence": lambda: losses.kl_divergence(student, teacher, temperature=1.0),
        "torch.compile": lambda: compiled(student, teacher),
        "KLDivergence, T=4": lambda: losses.kl_divergence(student, teacher),
        **found,
    }
    result = compare(contestants, [student], repeats)
    title = f"({n}, {c}) {str(dtype).removeprefix('torch.')}, threads: {torch.get_num_threads()}"
    show(title, result, unit)
    if absent:
        print(f"\nabsent: {', '.join(absent)}")
    ours = result["KLDivergence"]
    bar(f"{title}: time / plain", ours[0], 0.30)
    bar(f"{title}: peak memory, tensors", ours[4] / unit, 1.25)
    bar(f"{title}: time / torch.compile", ours[0] / result["torch.compile"][0], 1.1)
    judge_peers(title, result, found)


def busy(repeats):
    """Measure beside a process that never rests."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for n, c, dtype in LARGE:
            student, teacher = pair(n, c, dtype)
            contestants = {
                "plain": lambda s=student, t=teacher: plain(s, t),
                "KLDivergence": lambda s=student, t=teacher: losses.kl_divergence(
                    s, t, temperature=1.0
                ),
            }
            result = compare(contestants, [student], repeats)
            title = f"({n}, {c}) {str(dtype).removeprefix('torch.')}, beside a busy process"
            show(title, result, student.numel() * student.element_size())
            bar(f"{title}: time / plain", result["KLDivergence"][0], 0.45)
    finally:
        other.kill()


def judge_peers(title, result, found):
    ours = result["KLDivergence"]
    for name in found:
        bar(f"{title}: time / {name}", ours[0] / result[name][0], 0.999)
        bar(f"{title}: memory / {name}", ours[4] / result[name][4], 0.999)


def family(repeats):
    student, teacher = pair(1024, 32000, torch.float32)
    contestants: Contestants = {"plain forward KL": lambda: plain(student, teacher)}
    for loss in (
        losses.KLDivergence(1.0),
        losses.ReverseKLDivergence(),
        losses.JensenShannonDivergence(),
        losses.SkewKLDivergence(),
        losses.ReverseSkewKLDivergence(),
        losses.TotalVariation(),
        losses.AlphaBetaDivergence(),
    ):
        contestants[type(loss).__name__] = lambda loss=loss: loss(student, teacher)
    mask = torch.rand(1024, generator=torch.Generator().manual_seed(0)) < 0.15
    kl = losses.KLDivergence(1.0)
    contestants["KLDivergence, 15 % of positions"] = lambda: kl(student, teacher, mask=mask)

    def without_gradient():
        with torch.no_grad():
            return kl(student, teacher)

    contestants["KLDivergence, no_grad"] = without_gradient
    result = compare(contestants, [student], repeats)
    show("One kernel, (1024, 32000) float32", result, student.numel() * 4)


def small(repeats):
    for n, c in ((128, 10), (1024, 10), (16384, 10), (128, 1000), (1024, 1000)):
        few_classes(n, c, repeats)


def few_classes(n, c, repeats):
    student, teacher = pair(n, c, torch.float32)
    kl = losses.KLDivergence(temperature=1.0)
    contestants = {
        "plain": lambda: plain(student, teacher),
        "kl_divergence": lambda: losses.kl_divergence(student, teacher, temperature=1.0),
        "KLDivergence": lambda: kl(student, teacher),
    }
    calls = 100 if n * c < 200_000 else 10
    result = compare(contestants, [student], repeats, calls)
    show(f"({n}, {c}) float32", result, student.numel() * 4)
    bar(f"({n}, {c}): time / plain", result["KLDivergence"][0], 1.1)


def fused(repeats, tokens=2048, hidden=512, vocabulary=32000):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(tokens, hidden, generator=generator) for _ in range(2))
    v, w = (torch.randn(vocabulary, hidden, generator=generator) * 0.05 for _ in range(2))
    s, v = s.requires_grad_(), v.requires_grad_()
    ours = losses.FusedLinearKL(temperature=1.0)

    def unfused():
        with torch.no_grad():
            teacher = t @ w.T
        return plain(s @ v.T, teacher)

    contestants: Contestants = {"plain": unfused, "FusedLinearKL": lambda: ours(s, v, t, w)}
    try:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        labels = torch.zeros(tokens).long()
        liger = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False
        )
        contestants["Liger, beta 0"] = lambda: liger(s, v, t, w, labels)
    except ImportError:
        print("\nabsent: liger-kernel")
    values = {name: run().item() for name, run in contestants.items()}
    result = compare(contestants, [s, v], repeats)
    title = f"Fused, {tokens} tokens, hidden {hidden}, vocabulary {vocabulary}"
    show(title, result, 4 * tokens * vocabulary)
    print(f"\nvalues: {values}")
    bar("fused: memory / plain", result["FusedLinearKL"][4] / result["plain"][4], 0.2)
    bar("fused: time / plain", result["FusedLinearKL"][0], 1.0)
    if "Liger, beta 0" in result:
        theirs = result["Liger, beta 0"]
        bar("fused: time / Liger", result["FusedLinearKL"][0] / theirs[0], 0.999)
        bar("fused: memory / Liger", result["FusedLinearKL"][4] / theirs[4], 0.999)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", default="small,large,busy,fused,family")
    parser.add_argument("--json", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    versions = {}
    for name in ("torch", "torchtune", "trl", "nvidia-modelopt", "liger-kernel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "absent"
    today = datetime.now(timezone.utc).date()
    print(f"{today}, {where()}, {versions}")
    parts = {"large": large, "busy": busy, "family": family, "small": small, "fused": fused}
    for name in options.only.split(","):
        parts[name](options.repeats)
    print(f"\n### Bars\n\n{where()}\n\n| bar | measured | at most | met |\n|---|---|---|---|")
    for what, measured, limit, met in VERDICTS:
        print(f"| {what} | {measured:.2f} | {limit:g} | {'yes' if met else 'NO'} |")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(VERDICTS, file)


if __name__ == "__main__":
    main()
