"""What a model calls its classes."""

from typing import Any

from torch import nn


def class_names(config: Any) -> list[str] | None:
    """Return the names of a configuration's classes in order; None where they tell nothing.

    Args:
        config: A configuration with ``id2label``, or anything else.

    Example:
        >>> from types import SimpleNamespace
        >>> class_names(SimpleNamespace(id2label={0: "LABEL_0", 1: "LABEL_1"})) is None
        True
    """
    found = getattr(config, "id2label", None)
    if not isinstance(found, dict) or set(found) != set(range(len(found))):
        return None
    names = [str(found[index]) for index in range(len(found))]
    by_default = all(name == f"LABEL_{index}" for index, name in enumerate(names))
    unique = len({name.casefold() for name in names}) == len(names)
    return None if by_default or not unique else names


def names_of(model: nn.Module) -> list[str] | None:
    """Return the names of a model's classes, by the configuration of its outermost module."""
    return class_names(next((m.config for m in model.modules() if hasattr(m, "config")), None))
