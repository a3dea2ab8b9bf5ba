"""Teachers: frozen models, and the weights that make them."""

from composer_distill.teachers.adapters import AdapterFreeTeacher
from composer_distill.teachers.cached import CachedTeacher
from composer_distill.teachers.ema import EMATeacher, Snapshot
from composer_distill.teachers.recording import cache_teacher
from composer_distill.teachers.teacher import Teacher
from composer_distill.weights.checkpoint import load_weights

__all__ = [
    "AdapterFreeTeacher",
    "CachedTeacher",
    "EMATeacher",
    "Snapshot",
    "Teacher",
    "cache_teacher",
    "load_weights",
]
