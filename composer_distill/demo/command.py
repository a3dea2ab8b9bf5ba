"""What ``composer-distill demo`` does once its arguments are right."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from composer_distill.demo.experiment import run_experiment
from composer_distill.demo.picture import draw
from composer_distill.demo.report import to_json, to_text
from composer_distill.demo.settings import Settings

CHECKPOINT, PICTURE, NUMBERS = "teacher.pt", "demo.png", "demo.json"


def run_demo(settings: Settings, output: Path) -> None:
    """Train, print the tables, and write the picture, the numbers and the teacher to ``output``."""
    start = time.perf_counter()
    with _one_thread():
        result = run_experiment(settings, output / CHECKPOINT)
    draw(result, settings, output / PICTURE)
    (output / NUMBERS).write_text(to_json(result, settings), encoding="utf-8")
    print(to_text(result, settings))
    print(f"\nAll in {time.perf_counter() - start:.0f} s. Written to {output}:")
    print(f"  {PICTURE}: the curves\n  {NUMBERS}: every number")
    print(f"  {CHECKPOINT}: the teacher's Composer checkpoint")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: for models this small more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
