"""The fingerprint of former versions, to compare with checkpoints that hold it."""

import hashlib

import torch
from torch import Tensor, nn

from composer_distill.weights.fingerprint import plain_names

SAMPLES = 64


def sampled_fingerprint(model: nn.Module) -> str:
    """Twelve letters made of each weight's name, shape and 64 of its values at most.

    It sees few of the changes of a large weight. New checkpoints hold the fingerprint of every
    byte; see ``fingerprint``.

    Args:
        model: The model.

    Example:
        >>> sampled_fingerprint(nn.Identity())
        'e3b0c44298fc'
    """
    state = model.state_dict()
    names = [name for name, value in state.items() if isinstance(value, Tensor)]
    digest = hashlib.sha256()
    for plain, name in sorted(plain_names(names).items()):
        weight = state[name]
        digest.update(f"{plain} {tuple(weight.shape)}".encode())
        digest.update(_sample(weight))
    return digest.hexdigest()[:12]


def _sample(weight: Tensor) -> bytes:
    if weight.is_meta:
        return b"meta"
    count = min(weight.numel(), SAMPLES)
    flat = weight.detach().reshape(-1)
    places = [index * (flat.numel() - 1) // max(count - 1, 1) for index in range(count)]
    values = flat[torch.tensor(places, dtype=torch.long, device=flat.device)]
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.to("cpu", torch.float64).contiguous().numpy().tobytes()
