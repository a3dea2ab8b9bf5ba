"""Weights of a distillation loss that nothing trains."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


def warn_of_untrained(kd_loss_fn: Any, optimizers: Iterable[torch.optim.Optimizer]) -> None:
    """Say in the log where a loss has weights that get gradients and no optimizer's steps.

    Args:
        kd_loss_fn: The distillation loss.
        optimizers: The Trainer's.
    """
    if not isinstance(kd_loss_fn, nn.Module):
        return
    trained = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    left = [
        name
        for name, parameter in kd_loss_fn.named_parameters()
        if parameter.requires_grad and id(parameter) not in trained
    ]
    if left:
        log.warning(
            "kd_loss_fn (%s) has %d weights that no optimizer trains (%s): they stay as they are, "
            "and their gradients grow with every batch. Make the loss a module of the student, or "
            "add its parameters to the optimizer; or freeze them with requires_grad_(False).",
            type(kd_loss_fn).__name__,
            len(left),
            ", ".join(left[:4]),
        )
