"""Means over a part of the positions that count, of another size in each microbatch."""

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

_SIZE = "part of the positions/"


def of_a_part(values: Mapping[str, Tensor], share: Tensor | float) -> dict[str, Tensor]:
    """Return means over a part, so that they can be averaged as those over all positions are.

    A mean is multiplied with the part's share, which is kept beside it: the sum of the one over the
    sum of the other is the mean over all parts of a batch.

    Args:
        values: Scalars by name.
        share: The part's share of the positions; 0 where it is empty, whatever the values are then.

    Example:
        >>> of_a_part({"kl": torch.tensor(3.0)}, 0.5)["kl"]
        tensor(1.5000)
    """
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        size = torch.as_tensor(share, device=value.device, dtype=torch.float32)
        # the value of an empty part may be NaN
        found[name] = torch.where(size > 0, value * size, torch.zeros_like(value))
        found[_SIZE + name] = size
    return found


def divide_by_parts(metrics: MutableMapping[str, float]) -> None:
    """Make the means of what :func:`of_a_part` noted; one over nothing is left out.

    Example:
        >>> metrics = {"kl": 1.5, "part of the positions/kl": 0.5}
        >>> divide_by_parts(metrics)
        >>> metrics
        {'kl': 3.0}
    """
    for name in [name for name in metrics if name.startswith(_SIZE)]:
        size, name = metrics.pop(name), name.removeprefix(_SIZE)
        if size > 0.0:
            metrics[name] /= size
        else:
            metrics.pop(name)
