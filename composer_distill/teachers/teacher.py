"""A frozen model, ready to answer the student's batches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from composer_distill.teachers.checkpoint import load_weights


class Teacher:
    """A model that teaches, with its options. Deliberately no ``nn.Module``: nothing may adopt it.

    Args:
        model: A ``ComposerModel``, a plain ``nn.Module`` or a Hugging Face model.
        checkpoint: Where to load its weights from, or None to keep those that it has.
        name: What logs and errors call it. Default: the model's class name.
        weight: Its share when several teachers are combined (relative, positive).
        input_fn: Maps the student's batch to the teacher's own view of it.
        output_fn: Maps the teacher's raw output to logits over the student's classes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        checkpoint: str | Path | None = None,
        name: str | None = None,
        weight: float = 1.0,
        input_fn: Callable[[Any], Any] | None = None,
        output_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        self.model = model
        self.name = name or type(model).__name__
        self.weight = float(weight)
        self.input_fn = input_fn
        self.output_fn = output_fn
        self.checkpoint = checkpoint
        if checkpoint is not None:
            load_weights(model, checkpoint, name=self.name)

    def freeze(self) -> None:
        """Turn gradients off and evaluation mode on."""
        self.model.requires_grad_(False)
        self.model.eval()

    def identity(self) -> str:
        """Return who the teacher is."""
        return f"{type(self.model).__name__}"

    def place(self, device: torch.device) -> None:
        """Move the model to ``device``."""
        self.model.to(device)

    def forward(
        self, batch: Any, call: Callable[[nn.Module, Any], Any], extract: Callable[[Any], Any]
    ) -> Any:
        """Answer a batch."""
        self.model.eval()
        view = batch if self.input_fn is None else self.input_fn(batch)
        output = call(self.model, view)
        return extract(output if self.output_fn is None else self.output_fn(output))
