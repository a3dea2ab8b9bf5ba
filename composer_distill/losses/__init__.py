"""Distillation losses: modules over pure functions, usable with or without Composer."""

from composer_distill.losses.base import DistillationLoss, WeightedSum
from composer_distill.losses.kl_divergence import KLDivergence, kl_divergence

__all__ = ["DistillationLoss", "KLDivergence", "WeightedSum", "kl_divergence"]
