"""The tables that ``composer-distill plan`` prints."""

from collections.abc import Sequence
from dataclasses import replace

from composer_distill.planning.cost import NODE, Gpu, seconds
from composer_distill.planning.memory import LAYOUTS, Plan, peak

GIB = 2**30
ROOM = 0.9
"""The share of a GPU's memory that tensors may take: the rest is for what is not counted."""
_PARTS = (
    "student's weights",
    "gathered weights",
    "gradients",
    "optimizer",
    "optimizer's temporary",
    "activations",
    "student's logits",
    "teacher's weights",
    "gathered teacher",
    "teacher's activations",
    "teacher's logits",
    "gradient of the logits",
    "fused loss's gradients",
    "chunk of logits",
)


def report(plan: Plan, name: str, gpu: Gpu, utilisation: float) -> str:
    """Return what each layout takes, and what fits.

    Args:
        plan: What is trained; its layout does not matter.
        name: What the GPU is called.
        gpu: What it is.
        utilisation: The share of its speed that it reaches while it computes.
    """
    plans = [replace(plan, layout=layout) for layout in LAYOUTS]
    texts = f"{plan.rows} {'text' if plan.rows == 1 else 'texts'} of {plan.length} tokens at a time"
    head = [
        f"student: {plan.student.parameters / 1e9:.2f} billion parameters; "
        f"teacher: {plan.teacher.parameters / 1e9:.2f} billion",
        f"{plan.gpus} {name} of {gpu.memory / GIB:.0f} GiB; {texts} on each, "
        f"{plan.rows * plan.microbatches * plan.gpus} a step; {plan.precision}"
        f"{', checkpointing' if plan.checkpointing else ''}{', fused loss' if plan.fused else ''}",
        "",
    ]
    peaks = [peak(each) for each in plans]
    at = [
        f"peak of {each.layout!r}: {moment}" for each, (moment, _) in zip(plans, peaks, strict=True)
    ]
    return "\n".join([*head, *_memory(plans, gpu), "", *_time(plans, gpu, utilisation), "", *at])


def _memory(plans: Sequence[Plan], gpu: Gpu) -> list[str]:
    peaks = [peak(plan)[1] for plan in plans]
    sums = [sum(parts.values()) for parts in peaks]
    room = ROOM * gpu.memory
    lines = [_line("GiB of a GPU at its peak", LAYOUTS)]
    for name in _PARTS:
        found = [parts.get(name, 0.0) / GIB for parts in peaks]
        if any(found):
            lines.append(_line(name, [f"{value:.1f}" if value else "" for value in found]))
    lines.append(_line("sum", [f"{value / GIB:.1f}" for value in sums]))
    fits = ["yes" if value <= room else "no" for value in sums]
    lines.append(_line(f"fits into {room / GIB:.0f} GiB", fits))
    lines.append(_line("most texts at a time", [str(_most(plan, room)) for plan in plans]))
    lines.append(_line("GiB of a host, loading", [f"{_loading(p) / GIB:.0f}" for p in plans]))
    return lines


def _time(plans: Sequence[Plan], gpu: Gpu, utilisation: float) -> list[str]:
    found = [seconds(plan, gpu, utilisation) for plan in plans]
    tokens = plans[0].tokens * plans[0].microbatches * plans[0].gpus
    rows = {
        "student": [each.student for each in found],
        "teacher": [each.teacher for each in found],
        "network, meanwhile": [each.network for each in found],
        "copies from the host": [each.host for each in found],
        "sum": [each.total for each in found],
    }
    return [
        _line(f"seconds of a step, at {utilisation:.0%}", LAYOUTS),
        *(
            _line(name, [f"{value:.3f}" if value else "" for value in values])
            for name, values in rows.items()
        ),
        _line("tokens a second", [f"{tokens / value:.0f}" for value in rows["sum"]]),
    ]


def _line(name: str, cells: Sequence[str]) -> str:
    return f"{name:26}" + "".join(f"{cell:>13}" for cell in cells)


def _most(plan: Plan, room: float) -> int:
    """Return how many texts a GPU can read at a time, up to 1024."""
    low, high = 0, 1025  # the first fits, the second does not
    while high - low > 1:
        middle = (low + high) // 2
        if sum(peak(replace(plan, rows=middle))[1].values()) <= room:
            low = middle
        else:
            high = middle
    return low


def _loading(plan: Plan) -> float:
    """Return the bytes of a machine's own memory: each process loads a teacher whole."""
    if plan.layout == "cached":
        return 0.0
    return plan.teacher_bytes * plan.teacher.parameters * min(plan.gpus, NODE)
