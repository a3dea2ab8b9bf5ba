"""Students of the teacher's width and vocabulary: cut from it, or with random weights."""

from typing import Any

import torch
import transformers
from torch import nn

from composer_distill import student_from_teacher


def cut(teacher: nn.Module, layers: int) -> Any:
    """Return ``layers`` of the teacher's layers, at even distances."""
    return student_from_teacher(teacher, layers=layers)


def random_like(student: Any, seed: int) -> Any:
    """Return a model of the same shape whose weights are random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(student.config)
