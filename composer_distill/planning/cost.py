"""Seconds of a step: operations over speed, bytes over bandwidth. Nothing here was measured."""

from dataclasses import dataclass

from composer_distill.planning.memory import Plan
from composer_distill.planning.shapes import Shape

NODE = 8
"""GPUs of a machine."""
BETWEEN_NODES = 50e9
"""Bytes a second of a GPU to other machines: 400 Gb/s."""


@dataclass(frozen=True)
class Gpu:
    """What makers' data sheets say of a GPU.

    Args:
        memory: Bytes.
        speed: Dense operations a second in bfloat16.
        network: Bytes a second to the other GPUs of the machine, one way.
        host: Bytes a second from the host's memory, one way.
    """

    memory: float
    speed: float
    network: float
    host: float


GPUS = {
    "a100": Gpu(memory=80 * 2**30, speed=312e12, network=300e9, host=32e9),
    "h100": Gpu(memory=80 * 2**30, speed=989e12, network=450e9, host=64e9),
    "h200": Gpu(memory=140 * 2**30, speed=989e12, network=450e9, host=64e9),
}
"""GPUs that have a name."""


@dataclass(frozen=True)
class Seconds:
    """Seconds of a step, by what they go to."""

    student: float
    teacher: float
    network: float
    host: float

    @property
    def total(self) -> float:
        """A step: the network works while the GPU computes, copies from the host do not."""
        return max(self.student + self.teacher, self.network) + self.host


def seconds(plan: Plan, gpu: Gpu, utilisation: float) -> Seconds:
    """Return how long a step takes.

    Args:
        plan: What is trained.
        gpu: On what.
        utilisation: The share of its speed that a GPU reaches while it computes.
    """
    tokens = plan.tokens * plan.microbatches
    speed = gpu.speed * utilisation * (0.5 if plan.precision == "fp32" else 1.0)  # TF32
    forwards = 4 if plan.checkpointing else 3  # a backward is two forwards
    asked = plan.layout != "cached"
    return Seconds(
        student=forwards * tokens * _forward(plan.student, plan.length) / speed,
        teacher=asked * tokens * _forward(plan.teacher, plan.length) / speed,
        network=_sent(plan) / (gpu.network if plan.gpus <= NODE else BETWEEN_NODES),
        host=_copied(plan) / gpu.host,
    )


def _forward(shape: Shape, length: int) -> float:
    """Return the operations of a token's forward: two a weight, and causal attention."""
    matrices = shape.layers * shape.block + shape.embedding
    return 2.0 * matrices + 2.0 * shape.layers * length * shape.width_of_queries


def _sent(plan: Plan) -> float:
    """Return the bytes that a GPU receives in a step."""
    others, computed = (plan.gpus - 1) / plan.gpus, 4 if plan.precision == "fp32" else 2
    if not plan.cut:  # gradients are averaged once: handed around, and handed back
        size = 2 if plan.precision == "bf16" else 4
        return 2 * size * plan.student.parameters * others
    # weights for the forward and the backward, and gradients
    sent = 3 * computed * plan.student.parameters
    if plan.layout == "both cut":
        sent += plan.teacher_bytes * plan.teacher.parameters
    return plan.microbatches * sent * others


def _copied(plan: Plan) -> float:
    """Return the bytes that a GPU reads from the host in a step."""
    whole = plan.teacher_bytes * plan.teacher.parameters
    return plan.microbatches * whole if plan.layout == "offloaded" else 0.0
