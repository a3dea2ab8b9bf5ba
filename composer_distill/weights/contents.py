"""What an opened checkpoint offers: names, shapes, and one tensor at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from composer_distill.weights.wording import plain


class Spec(NamedTuple):
    """The shape and the type of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class OddTensor:
    """Stands in for a tensor of a file that is no dense one with values, and is not made.

    Args:
        kind: What it is, in a word.
    """

    kind: str

    @classmethod
    def of(cls, kind: str, *_: object) -> "OddTensor":
        """Make one, whatever else the file says of it."""
        return cls(kind)


@dataclass(frozen=True)
class Contents:
    """The weights of one checkpoint, described at once and read one by one.

    Args:
        path: The file or folder that is read.
        kind: What it is, in words.
        specs: Each weight's name, shape and type.
        read: Gives the weight of a name. What it gives may be a read-only view of the file.
        mapped: Whether ``read`` gives views of a memory-mapped file.
        stored: What the file holds beside the weights: plain data.
    """

    path: Path
    kind: str
    specs: Mapping[str, Spec]
    read: Callable[[str], Tensor]
    mapped: bool = False
    stored: Mapping[str, Any] = field(default_factory=dict)


def spec_of(tensor: Tensor) -> Spec:
    """Describe a tensor.

    Example:
        >>> spec_of(torch.zeros(2, 3))
        Spec(shape=(2, 3), dtype=torch.float32)
    """
    return Spec(tuple(tensor.shape), tensor.dtype)


def holds_weights(candidate: object) -> bool:
    """Whether ``candidate`` maps names to tensors, and holds one at least.

    Example:
        >>> holds_weights({"weight": torch.zeros(1)}), holds_weights({}), holds_weights({"lr": 0.1})
        (True, False, False)
    """
    return (
        isinstance(candidate, Mapping)
        and bool(candidate)
        and all(isinstance(name, str) for name in candidate)
        and all(isinstance(value, Tensor | OddTensor) for value in candidate.values())
    )


def of_tensors(
    path: Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    *,
    mapped: bool = False,
    stored: Mapping[str, Any] | None = None,
) -> Contents:
    """Contents whose tensors are already at hand, mapped or in memory.

    Raises:
        ValueError: If one of them is sparse, quantized or without values.
    """
    specs = specs_of(tensors)
    return Contents(path, kind, specs, tensors.__getitem__, mapped, stored or {})


def specs_of(tensors: Mapping[str, Tensor]) -> dict[str, Spec]:
    """Describe dense tensors.

    Raises:
        ValueError: If one of them is sparse, quantized or without values.
    """
    for name, tensor in tensors.items():
        if isinstance(tensor, OddTensor):
            raise ValueError(f"its {plain(name)} is no dense tensor with values, but {tensor.kind}")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError(
                f"its {plain(name)} is no dense tensor with values, but {tensor.type()}"
            )
    return {name: spec_of(tensor) for name, tensor in tensors.items()}
