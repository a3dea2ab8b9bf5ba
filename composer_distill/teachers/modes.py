"""Whether a model is in train mode, seen at a tenth of what it takes to change that."""

from typing import Any

from torch import nn


def any_trains(model: nn.Module) -> bool:
    """Return whether any module is in train mode; eval() takes ten times as long as to look."""
    found: list[Any] = [model]
    for module in found:  # which grows meanwhile
        if getattr(module, "training", False):  # a frozen TorchScript module has no such flag
            return True
        if module is not None and module._modules:
            found += module._modules.values()
    return False
