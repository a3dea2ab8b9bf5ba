"""Train and eval mode: seen, and left for a moment."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def common_modules(student: nn.Module, teacher: nn.Module) -> list[nn.Module]:
    """Return the modules that are the same in both; none where the teacher is the student."""
    if student is teacher:
        return []
    theirs = {id(module) for module in teacher.modules()}
    return [module for module in student.modules() if id(module) in theirs]


@contextmanager
def modes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Have modules in the modes behind a ``with`` block that they had before it."""
    modes = [module.training for module in modules]
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextmanager
def eval_mode_within(model: nn.Module) -> Iterator[None]:
    """Have each module in eval mode inside a ``with`` block, and in its own mode again behind it.

    ``eval()`` and ``train()`` are not called: a model may do more in them, and they know one mode
    for all modules.

    Args:
        model: A model that is used elsewhere.

    Example:
        >>> model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
        >>> with eval_mode_within(model):
        ...     model[0].training
        False
        >>> [module.training for module in model]
        [True, False]
    """
    training = [module for module in model.modules() if module.training]
    with modes_kept(training):
        for module in training:
            module.training = False
        yield
