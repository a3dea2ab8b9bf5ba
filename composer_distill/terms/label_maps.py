"""Whether student and teacher call their classes alike, and the way from one order to the other."""

import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from composer_distill.teachers.cached import CachedTeacher
from composer_distill.teachers.class_names import class_names, names_of
from composer_distill.teachers.outputs import extract_logits
from composer_distill.teachers.roster import AnyTeacher

_log = logging.getLogger(__name__)


def reorder_labels(
    teacher_config: Any, student_config: Any, *, dim: int = -1
) -> Callable[[Any], Tensor]:
    """Return the ``output_fn`` of a teacher whose classes stand in another order.

    Classes are matched by their names in ``id2label``, upper and lower case alike. Classes that the
    teacher has beside the student's are left out.

    Args:
        teacher_config: The teacher's configuration, of transformers' kind.
        student_config: The student's.
        dim: The class axis of the teacher's logits.

    Returns:
        A function from the teacher's output to its logits over the student's classes.

    Raises:
        ValueError: If a configuration gives its classes no names, or the teacher lacks one.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> teacher = SimpleNamespace(id2label={0: "contradiction", 1: "entailment"})
        >>> student = SimpleNamespace(id2label={0: "Entailment", 1: "Contradiction"})
        >>> reorder_labels(teacher, student)(torch.tensor([[1.0, 2.0]]))
        tensor([[2., 1.]])
    """
    wanted, given = class_names(student_config), class_names(teacher_config)
    if wanted is None or given is None:
        owner = "student_config" if wanted is None else "teacher_config"
        raise ValueError(
            f"{owner} must name each class once in id2label, got "
            f"{getattr(student_config if wanted is None else teacher_config, 'id2label', None)}. "
            "Set id2label, or write an output_fn that picks the teacher's classes by number."
        )
    places = {name.casefold(): index for index, name in enumerate(given)}
    missing = [name for name in wanted if name.casefold() not in places]
    if missing:
        raise ValueError(
            f"teacher_config must name all of the student's classes, but lacks {missing}: it has "
            f"{given}. Use a teacher that was trained on them, or rename its id2label."
        )
    order = [places[name.casefold()] for name in wanted]

    def reordered(output: Any) -> Tensor:
        logits = extract_logits(output, "the teacher")
        return logits.index_select(dim, logits.new_tensor(order).long())

    return reordered


def check_label_maps(student: nn.Module, teacher: AnyTeacher, owner: str) -> None:
    """Refuse a teacher that has the student's classes in another order.

    Kept answers have the classes of the teacher that gave them; an ``output_fn`` maps a teacher's
    as its user says. As many classes of which none has the same name are told of in the log, since
    that may be another language, or another task.

    Args:
        student: The student.
        teacher: The teacher.
        owner: Which teacher it is, for errors.

    Raises:
        ValueError: If both name the same classes, and one of them stands elsewhere.
    """
    ours, theirs = names_of(student), _answered(teacher)
    if ours is None or theirs is None:
        return
    folded, other = ([name.casefold() for name in names] for names in (ours, theirs))
    if len(ours) == len(theirs) and not {*folded} & {*other}:
        _log.warning(
            "%s: none of its classes has the name of one of the student's: %s where the student's "
            "are %s. Each class is compared with the one at its own place. If they are the same "
            "classes, give both configurations one id2label.",
            owner,
            _some(theirs),
            _some(ours),
        )
    if folded == other or sorted(folded) != sorted(other):
        return
    remedy = "Write other answers of" if isinstance(teacher, CachedTeacher) else "Map them with"
    raise ValueError(
        f"{owner}: its classes stand in another order: {theirs} where the student's are {ours}.\n"
        f"{remedy} Teacher(..., output_fn=composer_distill.reorder_labels(teacher.config, "
        "student.config)), or mend the id2label that is wrong."
    )


def _answered(teacher: AnyTeacher) -> list[str] | None:
    """Return the names of the classes of a teacher's answers; None where they are not known."""
    if isinstance(teacher, CachedTeacher):
        kept = teacher.cache.manifest.recipe.labels
        return None if kept is None else list(kept)
    return None if teacher.output_fn is not None else names_of(teacher.model)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
