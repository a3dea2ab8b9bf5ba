"""Knowledge distillation for MosaicML Composer."""

from composer_distill.distillation import Distillation
from composer_distill.losses import KLDivergence
from composer_distill.students import copy_matching, layer_importance, student_from_teacher
from composer_distill.teachers import Teacher
from composer_distill.terms.judging import teacher_confident, teacher_correct
from composer_distill.terms.label_maps import reorder_labels
from composer_distill.terms.positions import all_positions, attended_positions, loss_positions

__all__ = [
    "Distillation",
    "KLDivergence",
    "Teacher",
    "all_positions",
    "attended_positions",
    "copy_matching",
    "layer_importance",
    "loss_positions",
    "reorder_labels",
    "student_from_teacher",
    "teacher_confident",
    "teacher_correct",
]
__version__ = "0.1.0"
