"""Distillation that is told in plain types, as a YAML holds them."""

from composer_distill.config.distillation import distillation_from_config

__all__ = ["distillation_from_config"]
