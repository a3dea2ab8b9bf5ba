"""Students made from teachers."""

from composer_distill.students.depth import student_from_teacher
from composer_distill.students.importance import layer_importance

__all__ = ["layer_importance", "student_from_teacher"]
