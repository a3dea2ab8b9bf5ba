"""Teachers: frozen models, and the weights that make them."""

from composer_distill.teachers.cached import CachedTeacher
from composer_distill.teachers.recording import cache_teacher
from composer_distill.teachers.teacher import Teacher
from composer_distill.weights.checkpoint import load_weights

__all__ = ["CachedTeacher", "Teacher", "cache_teacher", "load_weights"]
from composer_distill.teachers.ema import EMATeacher, Snapshot

__all__ = ["EMATeacher", "Snapshot", "Teacher", "load_weights"]
