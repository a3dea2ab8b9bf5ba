"""The result of ``composer-distill demo --real`` as text, as JSON and as a picture."""

from dataclasses import asdict
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from composer_distill.demo.document import dump, join
from composer_distill.demo.real.experiment import ALONE, DISTILLED, RealResult
from composer_distill.demo.real.scores import Scores
from composer_distill.demo.real.settings import RealSettings

SMOKE_NOTE = "Smoke setting (--fast): too short for a student to learn. No result."
_HEADERS = ["", "nats a token", "agreement %", "ECE %", "CPU s"]
_SIDES = ("left", "right", "right", "right", "right")
_PACKAGES = ("mosaicml", "torch", "transformers", "numpy")
# Okabe and Ito's orange and blue, which the colour-blind tell apart; markers differ as well
_STYLES = {ALONE: ("#D55E00", "s"), DISTILLED: ("#0072B2", "o")}
_GREY = "#555555"


def to_text(result: RealResult, settings: RealSettings) -> str:
    """Return the table, and what it compares, for a terminal."""
    ends = {name: points[-1] for name, points in result.curves.items()}
    lines = [
        _line("teacher", result.teacher, ""),
        _line("cut, untrained", result.untrained, ""),
        *(_line(name, end.scores, f"{end.cpu_seconds:.0f}") for name, end in ends.items()),
    ]
    lost = result.untrained.nll - result.teacher.nll
    won = {name: result.untrained.nll - end.scores.nll for name, end in ends.items()}
    back = {name: 100 * nats / lost for name, nats in won.items()}
    sections = [
        f"Teacher: {result.teacher_parameters / 1e6:.0f} million parameters. Students: "
        f"{settings.layers} of its layers, {result.student_parameters / 1e6:.0f} million.\n"
        f"{settings.steps} batches of {settings.batch_size} windows of {settings.length} tokens, "
        f"learning rate {settings.learning_rate:g}, one seed.\nBoth students read the same batches "
        "and begin alike.",
        tabulate(lines, _HEADERS, disable_numparse=True, colalign=_SIDES),
        f"Of the nats lost by the cut, {back[ALONE]:.0f} % came back by text alone and "
        f"{back[DISTILLED]:.0f} % from the cached teacher.\n"
        f"The teacher answered once, in {result.cache_seconds:.0f} CPU s, for any number of "
        "students.\nNats: of held-out text. Agreement: on the likeliest token, with the teacher.",
    ]
    return join(sections, SMOKE_NOTE if settings.smoke else None)


def to_json(result: RealResult, settings: RealSettings) -> str:
    """Return every number, and what it depends on."""
    return dump(settings, _PACKAGES, asdict(result))


def draw(result: RealResult, path: Path) -> None:
    """Write the picture to ``path`` as a PNG."""
    figure = Figure(figsize=(8, 3.6), dpi=130, layout="constrained")
    nats, agreement = figure.subplots(1, 2)
    for name, points in result.curves.items():
        colour, marker = _STYLES[name]
        steps = [0, *(point.step for point in points)]
        scores = [result.untrained, *(point.scores for point in points)]
        nats.plot(steps, [s.nll for s in scores], color=colour, marker=marker, label=name)
        agreed = [100 * s.agreement for s in scores]
        agreement.plot(steps, agreed, color=colour, marker=marker)
    nats.axhline(result.teacher.nll, color=_GREY, linestyle="--", label="teacher")
    nats.set_title("Held-out nats a token (lower is better)", fontsize=10)
    agreement.set_title("Agreement with the teacher in %", fontsize=10)
    for axes in (nats, agreement):
        axes.set_xlabel("steps")
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    nats.legend(frameon=False)
    figure.savefig(path)


def _line(name: str, scores: Scores, seconds: str) -> list[str]:
    percent = f"{100 * scores.agreement:.1f}", f"{100 * scores.ece:.1f}"
    return [name, f"{scores.nll:.3f}", *percent, seconds]
