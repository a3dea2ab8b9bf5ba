"""Teachers: frozen models, and the weights that make them."""

from composer_distill.teachers.checkpoint import load_weights
from composer_distill.teachers.teacher import Teacher

__all__ = ["Teacher", "load_weights"]
