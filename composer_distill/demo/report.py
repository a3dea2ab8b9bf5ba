"""The demo's result as text and as JSON."""

from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from composer_distill.demo.document import dump, join
from composer_distill.demo.experiment import (
    ALONE,
    DISTILLED,
    FEW_ALONE,
    FEW_DISTILLED,
    TEACHER,
    Result,
)
from composer_distill.demo.settings import Settings
from composer_distill.demo.summary import Difference, Spread, compare, of_arm, summarize

PAIRS = ((ALONE, DISTILLED), (FEW_ALONE, FEW_DISTILLED))
SMOKE_NOTE = "Smoke setting (--fast): too short for distillation to help. No result."

_COLUMNS = {"accuracy": 100.0, "nll": 1.0, "ece": 100.0, "agreement": 100.0}
_HEADERS = ["", "accuracy %", "NLL", "ECE %", "agreement %", "seconds"]
_PACKAGES = ("mosaicml", "torch", "torchmetrics", "scikit-learn", "numpy")


def to_text(result: Result, settings: Settings) -> str:
    """Return the tables, and what they compare, for a terminal."""
    teacher, few = of_arm(result.runs, TEACHER)[0], of_arm(result.runs, FEW_ALONE)[0]
    labelled = (
        f"With {teacher.labels} labels, {settings.steps} batches of {settings.batch_size}. In each "
        "pair both students have\nthe same initial weights, images, labels and batches; one also "
        "hears the teacher\n"
        f"(KL at temperature {settings.temperature:g}, weights {settings.org_loss_weight:g} loss + "
        f"{settings.kd_loss_weight:g} distillation)."
    )
    unlabelled = (
        f"With few labels, {settings.few_steps} batches. Alone: {few.labels} labelled images. "
        f"Distilled: the {teacher.labels} training\nimages without any label (the student's own "
        "loss has weight 0), answered by the\nteacher, which itself saw their labels. Same "
        "initial weights."
    )
    sections = [
        f"Handwritten digits, {result.test_images} test images; {settings.seeds} paired seeds, "
        f"mean ± sd.\nTeacher: CNN, {result.teacher_parameters} parameters. Student: perceptron, "
        f"{result.student_parameters} parameters.",
        f"{labelled}\n\n{_table(result, ALONE, DISTILLED)}",
        f"{unlabelled}\n\n{_table(result, FEW_ALONE, FEW_DISTILLED)}",
        "Difference: distilled minus alone; in brackets, the seeds on which distilled is better.\n"
        "Agreement: on the most likely class, with the teacher.\n"
        "Seconds: of one training, its curve measured on the way; the teacher is trained once.",
    ]
    return join(sections, SMOKE_NOTE if settings.smoke else None)


def to_json(result: Result, settings: Settings) -> str:
    """Return every number of the demo, and what it depends on."""
    numbers = {
        "checkpoint": result.checkpoint.name,
        "parameters": {"teacher": result.teacher_parameters, "student": result.student_parameters},
        "test_images": result.test_images,
        "summary": {
            arm: _plain(summarize(result.runs, arm)) for arm in (TEACHER, *PAIRS[0], *PAIRS[1])
        },
        "differences": {
            distilled: _plain(compare(result.runs, alone, distilled)) for alone, distilled in PAIRS
        },
        "runs": [asdict(run) for run in result.runs],
    }
    return dump(settings, _PACKAGES, numbers)


def _plain(values: dict[str, Spread] | dict[str, Difference]) -> dict[str, Any]:
    return {name: asdict(value) for name, value in values.items()}


def _table(result: Result, alone: str, distilled: str) -> str:
    rows = [_row(result, arm) for arm in (TEACHER, alone, distilled)]
    differences = compare(result.runs, alone, distilled)
    cells = [_changed(differences[name], factor) for name, factor in _COLUMNS.items()]
    rows.append(["difference", *cells, ""])
    return tabulate(rows, _HEADERS, disable_numparse=True, stralign="right")


def _row(result: Result, arm: str) -> list[str]:
    summary = summarize(result.runs, arm)
    seconds = f"{summary['seconds'].mean:.1f}"
    if arm == TEACHER:
        cells = [_number(summary[name].mean, factor) for name, factor in _COLUMNS.items()]
        return [arm, *cells[:-1], "", seconds]
    cells = [
        f"{_number(summary[name].mean, factor)} ± {_number(summary[name].sd, factor)}"
        for name, factor in _COLUMNS.items()
    ]
    return [arm, *cells, seconds]


def _changed(difference: Difference, factor: float) -> str:
    sign = "-" if difference.mean < 0 else "+"
    size = f"{_number(abs(difference.mean), factor)} ± {_number(difference.sd, factor)}"
    return f"{sign}{size} ({difference.wins}/{difference.pairs})"


def _number(value: float, factor: float) -> str:
    """Percentages with two decimals, nats with three."""
    return f"{value * factor:.{2 if factor > 1 else 3}f}"
