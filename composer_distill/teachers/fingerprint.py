"""What a model is, in a few letters."""

import hashlib

import torch
from torch import Tensor, nn

SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """Twelve letters that tell one model's weights from another's.

    Made of each weight's name, shape and 64 of its values at most, evenly spread: cheap on large
    models, equal on every device and in every process. Another type (bfloat16) gives others.

    Args:
        model: The model.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> one = fingerprint(layer)
        >>> with torch.no_grad():
        ...     _ = layer.weight[1, 2].add_(1.0)
        >>> len(one), one == fingerprint(layer)
        (12, False)
    """
    digest = hashlib.sha256()
    state = model.state_dict()
    for name in sorted(state):
        if isinstance(state[name], Tensor):
            # The name that torch.compile adds says nothing of the weights.
            digest.update(f"{name.replace('_orig_mod.', '')} {tuple(state[name].shape)}".encode())
            digest.update(_sample(state[name]))
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
