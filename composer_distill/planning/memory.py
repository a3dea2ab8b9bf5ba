"""Bytes of one GPU, by part and by moment of a step.

A step has moments at which memory can be at its peak, and at each of them other things live. All
sizes are those of tensors; what an allocator loses between them, the CUDA context and NCCL's
buffers come on top.
"""

from dataclasses import dataclass
from typing import Literal

from composer_distill.planning.shapes import Shape

Parts = dict[str, float]
Layout = Literal["whole", "student cut", "both cut", "offloaded", "cached"]
LAYOUTS: tuple[Layout, ...] = ("whole", "student cut", "both cut", "offloaded", "cached")
PRECISIONS = ("fp32", "amp_bf16", "bf16")
# Bytes that a block keeps for its backward, a token: for each of the width and of the MLP's width.
# Counted in transformers' Llama and GPT-2 with attention that keeps no scores, and no dropout.
_KEPT = {
    (True, "fp32"): (44, 16),
    (True, "amp_bf16"): (36, 8),
    (True, "bf16"): (26, 8),
    (False, "fp32"): (36, 20),
    (False, "amp_bf16"): (26, 10),
    (False, "bf16"): (18, 10),
}
# The same of the last norm and the head's input
_KEPT_BEHIND = {
    (True, "fp32"): 12,
    (True, "amp_bf16"): 10,
    (True, "bf16"): 8,
    (False, "fp32"): 8,
    (False, "amp_bf16"): 6,
    (False, "bf16"): 4,
}
_FUSED_ENTRIES = 2**23  # logits of a chunk of FusedLinearKL
_CHUNK_ENTRIES = 2**24  # logits that other losses and the telemetry look at at a time, on a GPU
_STUDENT = "student's logits"
_OF_A_CHUNK = 20  # bytes, of five tensors in float32


@dataclass(frozen=True)
class Plan:
    """What is trained, and how.

    Args:
        student: The student's shape.
        teacher: The teacher's.
        layout: Which models are whole on each GPU and which are cut over all; ``'offloaded'`` and
            ``'cached'`` cut the student.
        gpus: How many GPUs.
        rows: Texts that a GPU reads at a time.
        length: Tokens of a text.
        microbatches: How often a GPU does so in a step.
        precision: ``'fp32'``; ``'amp_bf16'``, with weights in float32; or ``'bf16'`` throughout.
        kept: The share of positions that carry a loss.
        fused: Whether the loss is ``FusedLinearKL``.
        checkpointing: Whether blocks are computed anew in the backward.
        teacher_bytes: Bytes of a weight of the teacher.
        chunk: How many logits losses look at at a time; 2**17 on a CPU.
    """

    student: Shape
    teacher: Shape
    layout: Layout = "student cut"
    gpus: int = 8
    rows: int = 1
    length: int = 2048
    microbatches: int = 1
    precision: str = "amp_bf16"
    kept: float = 1.0
    fused: bool = False
    checkpointing: bool = False
    teacher_bytes: int = 2
    chunk: int = _CHUNK_ENTRIES

    @property
    def cut(self) -> bool:
        """Whether the student is cut over several GPUs."""
        return self.layout != "whole" and self.gpus > 1

    @property
    def tokens(self) -> int:
        """Tokens that a GPU reads at a time."""
        return self.rows * self.length

    @property
    def positions(self) -> float:
        """Positions of those that carry a loss; the last of a text predicts nothing."""
        return self.kept * self.rows * (self.length - 1)


def peak(plan: Plan) -> tuple[str, Parts]:
    """Return the moment of the peak, and what lives then."""
    found = moments(plan)
    name = max(found, key=lambda moment: sum(found[moment].values()))
    return name, found[name]


def moments(plan: Plan) -> dict[str, Parts]:
    """Return what lives at each moment of a step that may be its peak."""
    lasting, logits, block = _lasting(plan), _logits(plan), _of_a_block(plan)
    earlier, ends, end = _gradients(plan) * (plan.microbatches > 1), _of_ends(plan), "gradients"
    forward = {**lasting, end: earlier, "activations": _activations(plan), _STUDENT: logits}
    behind = {**forward, _STUDENT: logits + _logits(plan, 4)}  # what its own loss keeps is float32
    late = {**forward, end: _gradients(plan) + (ends if plan.cut else 0.0), "activations": block}
    early = {**forward, end: max(earlier, ends)}
    anew = block if plan.checkpointing else 0.0
    temporary = {"optimizer's temporary": lasting["optimizer"] / 2}
    return {
        "the student's own loss": {**forward, _STUDENT: _own_loss(plan)},
        "the teacher's forward": {**behind, **_answering(plan)},
        "the distillation loss": {**behind, **_comparing(plan)},
        "the backward of the losses": {**behind, **_backward_of_losses(plan)},
        "the backward of the head": {**early, _STUDENT: 2 * logits, **_fused_head(plan)},
        "the backward of the last block": {**early, "activations": early["activations"] + anew},
        "the backward of the first block": late,
        "the optimizer's step": {**late, end: _gradients(plan), "activations": 0.0, **temporary},
    }


def _bytes_of_weight(plan: Plan) -> int:
    return 2 if plan.precision == "bf16" else 4


def _bytes_computed(plan: Plan) -> int:
    return 4 if plan.precision == "fp32" else 2


def _computes_as(plan: Plan) -> str:
    """How activations are kept: FSDP hands a model weights and inputs in bfloat16 already."""
    return "bf16" if plan.cut and plan.precision == "amp_bf16" else plan.precision


def _lasting(plan: Plan) -> Parts:
    """Return what lives all the time."""
    student, share = plan.student, plan.gpus if plan.cut else 1
    size, computed = _bytes_of_weight(plan), _bytes_computed(plan)
    parts: Parts = {
        "student's weights": size * student.parameters / share,
        "optimizer": 2 * size * student.parameters / share,
    }
    if plan.cut:  # the ends stay gathered, and a block comes while another is computed
        parts["gathered weights"] = computed * (student.ends + 2 * student.block)
    elif plan.precision == "amp_bf16":  # autocast's copies
        looked_up = 0 if student.tied else student.embedding
        parts["gathered weights"] = 2 * (student.parameters - looked_up)
    if plan.layout in ("whole", "student cut"):
        parts["teacher's weights"] = plan.teacher_bytes * plan.teacher.parameters
    elif plan.layout == "both cut":
        parts["teacher's weights"] = plan.teacher_bytes * plan.teacher.parameters / plan.gpus
    return parts


def _gradients(plan: Plan) -> float:
    """Return the bytes of gradients; whole on several GPUs, DDP's buckets are as large again."""
    whole = _bytes_of_weight(plan) * plan.student.parameters
    if plan.cut:
        return whole / plan.gpus
    return whole * (2 if plan.gpus > 1 else 1)


def _of_ends(plan: Plan) -> float:
    """Return the bytes of the head's gradient; cut, whole with the embedding's until the end."""
    if plan.cut:
        return _bytes_computed(plan) * (plan.student.ends + plan.student.block)
    return _bytes_of_weight(plan) * plan.student.embedding


def _of_a_block(plan: Plan) -> float:
    shape = plan.student
    of_width, of_inner = _KEPT[shape.gated, _computes_as(plan)]
    return plan.tokens * (of_width * shape.hidden + of_inner * shape.inner)


def _input(plan: Plan) -> float:
    """Return the bytes of what lies between two blocks."""
    return plan.tokens * plan.student.hidden * (2 if _computes_as(plan) == "bf16" else 4)


def _activations(plan: Plan) -> float:
    shape = plan.student
    behind = plan.tokens * shape.hidden * _KEPT_BEHIND[shape.gated, _computes_as(plan)]
    return behind + shape.layers * (_input(plan) if plan.checkpointing else _of_a_block(plan))


def _logits(plan: Plan, size: int = 0) -> float:
    return plan.tokens * plan.student.vocab * (size or _bytes_computed(plan))


def _own_loss(plan: Plan) -> float:
    """Return the bytes of logits, their float32 copy, and the logarithms of probabilities."""
    copy = _logits(plan, 4) if plan.precision != "fp32" else 0.0
    return _logits(plan) + copy + _logits(plan, 4)


def _rows(plan: Plan) -> float:
    """Return the bytes of logits at the positions that carry a loss, in the student's type."""
    return plan.positions * plan.student.vocab * _bytes_computed(plan)


def _answering(plan: Plan) -> Parts:
    """Return what lives while the teacher's last layers answer."""
    teacher, size = plan.teacher, plan.teacher_bytes
    if plan.layout == "cached":
        return {}
    inside = plan.tokens * size * (3 * teacher.hidden + 3 * teacher.inner)
    at_end = plan.tokens * size * 2 * teacher.hidden + _answer(plan)
    parts: Parts = {"teacher's activations": max(inside, at_end)}
    if plan.layout == "both cut":
        parts["gathered teacher"] = size * (teacher.ends + 2 * teacher.block)
    elif plan.layout == "offloaded":
        parts["teacher's weights"] = size * teacher.parameters
    return parts


def _answer(plan: Plan) -> float:
    """Return the bytes of the teacher's logits, of which the fused loss has none."""
    return 0.0 if plan.fused else plan.positions * plan.teacher.vocab * plan.teacher_bytes


def _comparing(plan: Plan) -> Parts:
    """Return what lives in the distillation loss."""
    chunk = {"chunk of logits": _chunk(plan)}
    if plan.fused:
        return {**_fused_head(plan), **chunk}
    answer = 0.0 if plan.layout == "cached" else _answer(plan)
    of_student = 2 * _rows(plan)  # the rows that are kept, and their gradient
    return {"teacher's logits": answer, "gradient of the logits": of_student, **chunk}


def _fused_head(plan: Plan) -> Parts:
    """Return the gradients that the fused loss keeps for the backward."""
    if not plan.fused:
        return {}
    kept = plan.tokens * plan.student.hidden + plan.student.embedding
    return {"fused loss's gradients": 4 * kept}


def _chunk(plan: Plan) -> float:
    """Return the bytes of what losses and telemetry compute a few rows at a time."""
    entries = plan.positions * plan.student.vocab
    fused = (8 if plan.precision == "fp32" else 10) * min(_FUSED_ENTRIES, entries)
    return _OF_A_CHUNK * min(plan.chunk, entries) + (fused if plan.fused else 0.0)


def _backward_of_losses(plan: Plan) -> Parts:
    """Return what two losses hand back: the own one's three times, of which two in float32."""
    own = 2 * _logits(plan, 4) + (0.0 if plan.precision == "fp32" else _logits(plan))
    back = own + (0.0 if plan.fused else _logits(plan))
    return {"gradient of the logits": back, **_fused_head(plan)}
