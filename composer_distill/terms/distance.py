"""How far a student is from a target by any loss, as a scalar and its parts."""

from torch import Tensor

from composer_distill.losses import DistillationLoss
from composer_distill.teachers.microbatch import Compared
from composer_distill.terms.users_loss import UsersLoss


def distance(
    kd_loss_fn: UsersLoss, student: Compared, teacher: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss as a scalar, in float32 or better, and its parts where it has several.

    Args:
        kd_loss_fn: One of our losses, or any callable of logits, as the user's is called.
        student: What is compared of the student.
        teacher: The target, in its shape.

    Raises:
        TypeError: If a user's loss returns no tensor.
        ValueError: If labels are needed and there are none.
    """
    loss = kd_loss_fn.function
    if not isinstance(loss, DistillationLoss):
        return kd_loss_fn(student.logits, teacher), {}
    if loss.needs_labels and student.labels is None:
        raise ValueError(
            f"kd_loss_fn ({type(loss).__name__}) needs one class index for each position, "
            "but the batch holds none: they are its second element or its 'labels'. "
            "Use a loss without labels, such as KLDivergence."
        )
    labels = student.labels if loss.needs_labels else None
    parts = loss.parts(student.logits, teacher, mask=student.mask, labels=labels)
    named = parts if len(parts) > 1 else {}
    whole = _scalar(loss.combine(parts))
    return whole, {name: _scalar(part) for name, part in named.items()}


def check_gradient_path(loss: Tensor) -> None:
    """Refuse a loss that can't train the student.

    Raises:
        ValueError: If it requires no gradient.
    """
    if not loss.requires_grad:
        raise ValueError(
            "kd_loss_fn must return a tensor with a gradient path to the student's logits, got one "
            "that requires no gradient. It is called as kd_loss_fn(student, teacher): do not "
            "detach its first argument."
        )


def _scalar(value: Tensor) -> Tensor:
    return value.mean() if value.ndim else value
