"""Text that the student writes itself, in place of a share of the batches."""

from composer_distill.on_policy.algorithm import OnPolicy
from composer_distill.on_policy.generation import Sampling

__all__ = ["OnPolicy", "Sampling"]
