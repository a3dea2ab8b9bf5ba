"""A digit absent from the transfer set, learnt from the teacher's small probabilities alone.

After section 3 of arXiv 1503.02531. ``python -m tests.benchmarks.evidence.dark_knowledge
--output DIR``
"""

from dataclasses import replace
from functools import partial
from statistics import mean

import torch
from composer.models import ComposerClassifier
from matplotlib.figure import Figure
from torch import Tensor

from composer_distill.demo.data import CLASSES, DigitSet
from composer_distill.demo.scores import answer
from tests.benchmarks.evidence.experiment import Document, Experiment, Rows, main
from tests.benchmarks.evidence.plots import ALONE, DISTILLED, GREY, OTHER, legend_below, panels
from tests.benchmarks.evidence.runs import (
    ALONE_RATES,
    DISTILLED_RATES,
    Scale,
    Setting,
    run,
    split,
    teachers_of,
)
from tests.benchmarks.evidence.tables import level, rows_of, table, values

ABSENT = 3
LARGEST_SHIFT, SHIFT_STEP = 100.0, 0.1
HARD, HARD_ALL = f"hard labels, no {ABSENT}", "hard labels, all digits"
SHIFTS = {"": "no shift", "_matched": "shift by frequency", "_best": "best shift on the test set"}


def rows(seed: int, scale: Scale) -> Rows:
    """Return students that never see the digit, and two that do."""
    hard = Setting(ALONE_RATES, scale.steps)
    soft = Setting(DISTILLED_RATES, scale.steps, teachers=teachers_of(seed, scale))
    pure = replace(soft, kd_loss_weight=1.0)
    return {
        HARD: replace(hard, absent=ABSENT),
        f"distilled at T=1, no {ABSENT}": replace(pure, absent=ABSENT, temperature=1.0),
        f"distilled at T=4, no {ABSENT}": replace(pure, absent=ABSENT, temperature=4.0),
        f"distilled at T=20, no {ABSENT}": replace(pure, absent=ABSENT, temperature=20.0),
        f"distilled at T=20 with 0.1 of hard labels, no {ABSENT}": replace(
            soft, absent=ABSENT, temperature=20.0
        ),
        HARD_ALL: hard,
        "distilled at T=20, all digits": replace(pure, temperature=20.0),
    }


def measure(student: ComposerClassifier, test: DigitSet) -> dict[str, float]:
    """Return the accuracy on the absent digit, the others and all, at three shifts of its bias."""
    train_set, _ = split(validation=False)
    logits = answer(student, test)
    shifts = {
        "": 0.0,
        "_matched": matching_shift(answer(student, train_set)),
        "_best": best_shift(logits, test.labels),
    }
    result: dict[str, float] = {}
    for suffix, shift in shifts.items():
        right = shifted(logits, shift).argmax(-1) == test.labels
        absent = test.labels == ABSENT
        result[f"shift{suffix}"] = shift
        for name, chosen in (("absent", absent), ("others", ~absent), ("all", absent | ~absent)):
            result[f"{name}{suffix}"] = 100 * right[chosen].double().mean().item()
    return result


def matching_shift(logits: Tensor) -> float:
    """Return the shift at which the digit is answered for a tenth of the images.

    It needs images of all digits but no label: only that ten digits are about equally frequent.
    """
    margins = (others(logits) - logits[:, ABSENT]).sort().values
    border = len(margins) // CLASSES
    return margins[border - 1 : border + 1].mean().item()


def best_shift(logits: Tensor, labels: Tensor) -> float:
    """Return the shift of highest accuracy on all digits, the smallest of equals."""
    shifts = torch.arange(0.0, LARGEST_SHIFT, SHIFT_STEP)
    right = [(shifted(logits, s.item()).argmax(-1) == labels).sum().item() for s in shifts]
    return shifts[right.index(max(right))].item()


def shifted(logits: Tensor, shift: float) -> Tensor:
    """Return ``logits`` with ``shift`` added to the absent digit's."""
    return logits + shift * torch.nn.functional.one_hot(torch.tensor(ABSENT), CLASSES)


def others(logits: Tensor) -> Tensor:
    """Return the largest logit of the other digits."""
    return logits.masked_fill(torch.arange(CLASSES) == ABSENT, -torch.inf).amax(-1)


def show(document: Document) -> str:
    """Return the accuracy on the absent digit and on all, before and after each shift."""
    headers = ["student"]
    for text in SHIFTS.values():
        headers += [f"{ABSENT}s right %, {text}", "all right %"]
    headers += ["shift by frequency", "best shift"]
    lines = []
    for row in rows_of(document):
        cells = [level(document, row, f"{n}{s}", 1) for s in SHIFTS for n in ("absent", "all")]
        moved = [level(document, row, f"shift{s}", 1) for s in list(SHIFTS)[1:]]
        lines.append([row, *cells, *moved])
    return table(headers, lines)


def draw(document: Document) -> Figure:
    """Draw the accuracy on the absent digit and on the others, before and after each shift."""
    figure, axes = panels(2, width=6.0, height=4.6)
    names = rows_of(document)
    for each, name in zip(axes, ("absent", "others"), strict=True):
        for index, (suffix, text) in enumerate(SHIFTS.items()):
            for position, row in enumerate(names):
                seeds = values(document, row, f"{name}{suffix}")
                place = len(names) - position - 0.27 * (index - 1)
                colour = (ALONE, DISTILLED, OTHER)[index]
                label = text if position == 0 else None
                each.barh(place, mean(seeds), 0.25, color=colour, alpha=0.75, label=label)
                each.plot(seeds, [place] * len(seeds), ".", color=GREY, markersize=4)
        each.set_xlim(0, 100)
        each.set_yticks(range(len(names), 0, -1), labels=names if name == "absent" else [])
        each.grid(axis="x", color="#dddddd", linewidth=0.8)
        each.grid(visible=False, axis="y")
        digits = f"the {ABSENT}s" if name == "absent" else "the other digits"
        each.set_title(f"Test accuracy on {digits} in %", fontsize=10)
    legend_below(figure, axes[0])
    return figure


EXPERIMENT = Experiment("dark_knowledge", rows, show, draw, partial(run, measure=measure))

if __name__ == "__main__":
    main(EXPERIMENT)
