"""What a model is, in a few letters."""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

SAMPLES = 64


def fingerprint(model: nn.Module) -> str:
    """Twelve letters that tell one model's weights from another's.

    Made of each weight's name, shape and 64 of its values at most, evenly spread: cheap on large
    models, equal on every device and in every process, for a model and for the bare module that it
    wraps. Another type (bfloat16) gives other letters.

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
    state = model.state_dict()
    names = [name for name, value in state.items() if isinstance(value, Tensor)]
    return fingerprint_of(names, state.__getitem__)


def fingerprint_of(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """The fingerprint of weights that are read by name.

    Args:
        names: The weights' names.
        read: Gives the weight of a name.
    """
    digest = hashlib.sha256()
    for plain, name in sorted(_plain_names(list(names)).items()):
        weight = read(name)
        digest.update(f"{plain} {tuple(weight.shape)}".encode())
        digest.update(_sample(weight))
    return digest.hexdigest()[:12]


def _plain_names(names: list[str]) -> dict[str, str]:
    """Names without what a wrapper put before all of them, or torch.compile within them."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    for prefix in ("module.", "model."):
        if plain and all(name.startswith(prefix) for name in plain):
            return {short.removeprefix(prefix): name for short, name in plain.items()}
    return plain


def _sample(weight: Tensor) -> bytes:
    if weight.is_meta:
        return b"meta"
    count = min(weight.numel(), SAMPLES)
    flat = weight.detach().reshape(-1)
    places = [index * (flat.numel() - 1) // max(count - 1, 1) for index in range(count)]
    values = flat[torch.tensor(places, dtype=torch.long, device=flat.device)]
    real = torch.view_as_real(values) if values.is_complex() else values
    return real.to("cpu", torch.float64).contiguous().numpy().tobytes()
