"""Students made from teachers."""

from composer_distill.students.copying import Copied, copy_matching
from composer_distill.students.depth import student_from_teacher
from composer_distill.students.importance import layer_importance

__all__ = ["Copied", "copy_matching", "layer_importance", "student_from_teacher"]
