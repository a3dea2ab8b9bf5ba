"""Teachers: frozen models, and the weights that make them."""

from composer_distill.teachers.teacher import Teacher
from composer_distill.weights.checkpoint import load_weights

__all__ = ["Teacher", "load_weights"]
