"""What a model is, in a few letters: a digest of every byte of its weights."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

NO_WEIGHTS = "no weights"
"""Instead of a fingerprint, where a model holds nothing that could be compared."""

_LANES = 2**18  # words of 4 bytes that are folded side by side
_PLACES = 1001  # odd, so that a word's halves part
# Odd, so that nothing that differs becomes equal
_FACTOR = 1664525
_HALF_FACTOR = 25173


def fingerprint(model: nn.Module) -> str:
    """Twelve letters that tell one model's weights from another's.

    Made of each weight's name, shape, type and every byte, where it lies: equal on every device, in
    every process, whole or cut over ranks (which then all have to ask), and for a model and the
    bare module that it wraps. A model without a tensor is told by what its ``get_extra_state``
    returns, where that is plain data.

    Args:
        model: The model.

    Returns:
        The letters, or ``'no weights'`` for a model that holds nothing to be compared.

    Raises:
        ValueError: If a weight is of a kind whose bytes can't be read, naming it.

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
    if names:
        return fingerprint_of(names, state.__getitem__)
    if not state or not _is_plain(dict(state)):
        return NO_WEIGHTS
    return hashlib.sha256(repr(sorted(state.items())).encode()).hexdigest()[:12]


def fingerprint_of(names: Iterable[str], read: Callable[[str], Tensor]) -> str:
    """The fingerprint of weights that are read by name.

    Args:
        names: The weights' names.
        read: Gives the weight of a name.

    Raises:
        ValueError: If a weight is of a kind whose bytes can't be read.
    """
    digest, folded = hashlib.sha256(), _Folded()
    for plain, name in sorted(plain_names(list(names)).items()):
        weight = read(name)
        shape = "nested" if weight.is_nested else tuple(weight.shape)
        digest.update(f"{plain} {shape} {weight.dtype}\n".encode())
        for part in _dense(weight.detach()):
            digest.update(f"{part.nbytes}\n".encode())
            folded.add(_bytes_of(part, name))
    digest.update(folded.digest())
    return digest.hexdigest()[:12]


def plain_names(names: list[str]) -> dict[str, str]:
    """Names without what a wrapper put before all of them, or torch.compile within them."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    for prefix in ("module.", "model."):
        if plain and all(name.startswith(prefix) for name in plain):
            return {short.removeprefix(prefix): name for short, name in plain.items()}
    return plain


class _Folded:
    """Folds bytes, row after row of ``_LANES`` words, into one row that tells of all of them.

    Each row is added to a multiple of what was folded before, modulo 2^32, and the sum is moved by
    some places. In every second row it is the words' halves, modulo 2^16, that are multiplied and
    moved, so that what only a word's highest bits tell moves to lower ones and is multiplied up. No
    step makes equal what differs. Integers wrap alike on every device, so that the result is one.
    A step reads the weights once, and takes about twice as long as to sum them.
    """

    def __init__(self) -> None:
        self._now = self._next = torch.empty(0, dtype=torch.int32)
        self._rows = 0

    def add(self, data: Tensor) -> None:
        """Fold a flat tensor of bytes."""
        for words in _words(data):
            for row in words.split(_LANES):
                self._fold(row)

    def digest(self) -> bytes:
        """Return what was folded, as bytes."""
        return self._now.cpu().numpy().tobytes()

    def _fold(self, row: Tensor) -> None:
        size = len(row)
        if size > len(self._now) or row.device != self._now.device:
            grown = torch.zeros(max(size, len(self._now)), dtype=torch.int32, device=row.device)
            grown[: len(self._now)] = self._now.to(row.device)
            self._now, self._next = grown, torch.empty_like(grown)
        _multiply_add(row, self._now[:size], self._next[:size], halves=self._rows % 2 == 1)
        self._rows += 1
        if size == len(self._now):
            self._now, self._next = self._next, self._now
        else:
            self._now[:size] = self._next[:size]


def _multiply_add(row: Tensor, before: Tensor, after: Tensor, *, halves: bool) -> None:
    """Write ``row + factor * before``, moved by some places, to ``after``."""
    factor = _FACTOR
    if halves:
        factor = _HALF_FACTOR
        row, before, after = (words.view(torch.int16) for words in (row, before, after))
    places = _PLACES % len(row)
    rest = len(row) - places
    torch.add(row[:rest], before[:rest], alpha=factor, out=after[places:])
    torch.add(row[rest:], before[rest:], alpha=factor, out=after[:places])


def _words(data: Tensor) -> list[Tensor]:
    """Return flat bytes as words of 4, the last one filled up with zeros."""
    whole = data[: len(data) // 4 * 4]
    rest = data.new_zeros(4)
    rest[: len(data) - len(whole)] = data[len(whole) :]
    aligned = whole if whole.storage_offset() % 4 == 0 else whole.clone()
    words = [aligned.view(torch.int32)] if len(whole) else []
    return [*words, rest.view(torch.int32)] if len(whole) < len(data) else words


def _bytes_of(part: Tensor, name: str) -> Tensor:
    """Return a dense tensor's bytes, flat; a view of it where it is contiguous."""
    try:
        return part.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"its weight {name!r} is a {type(part).__name__} of {part.dtype}, whose bytes can't be "
            f"read, so that nothing can tell it from another ({error}). Convert it to a plain "
            "tensor first."
        ) from error


def _dense(weight: Tensor) -> Iterator[Tensor]:
    """Give the dense tensors that a weight of any kind is made of; none for one on meta."""
    if weight.is_meta:
        return
    inner: Any = weight
    if hasattr(weight, "full_tensor"):  # cut over ranks
        yield from _dense(inner.full_tensor())
    elif hasattr(weight, "__tensor_flatten__"):  # a subclass around others
        for attribute in inner.__tensor_flatten__()[0]:
            yield from _dense(getattr(weight, attribute))
    elif weight.is_nested:
        yield from weight.unbind()
    elif weight.is_quantized:
        yield from _quantised(weight)
    elif weight.layout is torch.strided:
        yield weight
    else:
        yield from _sparse(weight)


def _quantised(weight: Tensor) -> list[Tensor]:
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale = torch.tensor([weight.q_scale(), weight.q_zero_point()], dtype=torch.float64)
        return [weight.int_repr(), scale]
    return [weight.int_repr(), weight.q_per_channel_scales(), weight.q_per_channel_zero_points()]


def _sparse(weight: Tensor) -> list[Tensor]:
    if weight.layout is torch.sparse_coo:
        weight = weight.coalesce()
        return [weight.indices(), weight.values()]
    if weight.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [weight.crow_indices(), weight.col_indices(), weight.values()]
    if weight.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [weight.ccol_indices(), weight.row_indices(), weight.values()]
    return [weight.to_dense()]


def _is_plain(value: object) -> bool:
    """Return whether a value is data whose text tells all of it."""
    if isinstance(value, dict):
        return all(_is_plain(part) for part in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, bytes, int, float, bool, complex)
