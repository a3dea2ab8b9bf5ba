"""Knowledge distillation for MosaicML Composer.

Its names are loaded when they are first used: a loss needs torch alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from composer_distill.config import distillation_from_config
    from composer_distill.distillation import Distillation
    from composer_distill.losses import KLDivergence
    from composer_distill.on_policy import OnPolicy
    from composer_distill.students import copy_matching, layer_importance, student_from_teacher
    from composer_distill.teachers import (
        AdapterFreeTeacher,
        CachedTeacher,
        EMATeacher,
        Snapshot,
        Teacher,
        cache_teacher,
    )
    from composer_distill.terms.features.term import FeatureTerm
    from composer_distill.terms.judging import teacher_confident, teacher_correct
    from composer_distill.terms.label_maps import reorder_labels
    from composer_distill.terms.positions import all_positions, attended_positions, loss_positions

__all__ = [
    "AdapterFreeTeacher",
    "CachedTeacher",
    "Distillation",
    "EMATeacher",
    "FeatureTerm",
    "KLDivergence",
    "OnPolicy",
    "Snapshot",
    "Teacher",
    "all_positions",
    "attended_positions",
    "cache_teacher",
    "copy_matching",
    "distillation_from_config",
    "layer_importance",
    "loss_positions",
    "reorder_labels",
    "student_from_teacher",
    "teacher_confident",
    "teacher_correct",
]
__version__ = "0.1.0"

_HOMES = {
    "AdapterFreeTeacher": "teachers",
    "CachedTeacher": "teachers",
    "Distillation": "distillation",
    "EMATeacher": "teachers",
    "FeatureTerm": "terms.features.term",
    "KLDivergence": "losses",
    "OnPolicy": "on_policy",
    "Snapshot": "teachers",
    "Teacher": "teachers",
    "all_positions": "terms.positions",
    "attended_positions": "terms.positions",
    "cache_teacher": "teachers",
    "copy_matching": "students",
    "distillation_from_config": "config",
    "layer_importance": "students",
    "loss_positions": "terms.positions",
    "reorder_labels": "terms.label_maps",
    "student_from_teacher": "students",
    "teacher_confident": "terms.judging",
    "teacher_correct": "terms.judging",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # so that it is asked for once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
