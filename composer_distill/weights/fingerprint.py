"""What a model is, in a few letters: a digest of every byte of its weights."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composer_distill.threads import spread

NO_WEIGHTS = "no weights"
"""Instead of a fingerprint, where a model holds nothing that could be compared."""

_COLUMNS = 64  # words of 8 bytes in a row
_ROW = 8 * _COLUMNS
_BLOCK = 2**11  # rows whose columns are added up: a megabyte, which a core's own cache holds
_SEGMENT = 2**28  # bytes that are folded at a time
_SHORT = 2**14  # bytes that are not folded
_FACTORS = np.cumprod(np.full(_COLUMNS, 6364136223846793005, np.uint64))  # odd, as all their powers
_BLOCKS_AT_ONCE = 16  # to a thread, which waits for its turn between them
_ROWS_AT_ONCE = 2**17  # whose products a device holds for a moment


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
    weights = dict(_weights_of(state))
    if weights:
        return fingerprint_of(weights, weights.__getitem__)
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
    digest = hashlib.sha256()
    for plain, name in sorted(plain_names(list(names)).items()):
        weight = read(name)
        shape = "nested" if weight.is_nested else tuple(weight.shape)
        digest.update(f"{plain} {shape} {weight.dtype}\n".encode())
        for part in _dense(weight.detach()):
            digest.update(f"{part.nbytes}\n".encode())
            for piece in _folded(_bytes_of(part, name)):
                digest.update(piece)
    return digest.hexdigest()[:12]


def _weights_of(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Give a state's tensors and their names, also those that layers of torch's own pack."""
    for name, value in state.items():
        if isinstance(value, Tensor):
            yield name, value
            continue
        if isinstance(value, torch.ScriptObject):  # such as weights of a quantised LSTM
            packed: Any = value
            value = packed.__getstate__()
        if isinstance(value, (tuple, list)):
            value = {str(index): part for index, part in enumerate(value)}
        if isinstance(value, Mapping):
            yield from _weights_of({f"{name}.{key}": part for key, part in value.items()})


def plain_names(names: list[str]) -> dict[str, str]:
    """Names without what a wrapper put before all of them, or torch.compile within them."""
    plain = {name.replace("_orig_mod.", ""): name for name in names}
    for prefix in ("module.", "model."):
        if plain and all(name.startswith(prefix) for name in plain):
            return {short.removeprefix(prefix): name for short, name in plain.items()}
    return plain


def _folded(data: Tensor) -> Iterator[bytes]:
    """Give few bytes that tell of all of a flat tensor of bytes.

    A change of one or two words of 8 bytes is always among them, so that any value of up to 8 bytes
    that is changed, and any two that change places, are seen. Words lie in rows of 64; from each
    row its sum comes, each word multiplied by an odd factor of its column, and from each column of
    2048 rows its plain sum, both modulo 2^64. Two words of unlike columns change two column sums;
    two of one column change two row sums, since an odd factor makes no change 0, or the column sums
    of two blocks. So one of both kinds of sums is left with one or two changes, and is folded
    again until it is short. Integers wrap alike on every device, so that the result is one.
    It takes about twice as long as to sum the words.
    """
    for segment in data.split(_SEGMENT):
        yield torch.cat(list(_shortened(segment))).cpu().numpy().tobytes()


def _shortened(data: Tensor) -> Iterator[Tensor]:
    whole = 0 if len(data) <= _SHORT else len(data) // _ROW * _ROW
    if whole:
        even = data[:whole] if data.storage_offset() % 8 == 0 else data[:whole].clone()
        for sums in _sums(even.view(torch.int64).view(-1, _COLUMNS)):
            yield from _shortened(sums.view(-1).view(torch.uint8))
    yield data[whole:]


def _sums(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of each row of words, and each block's sums of its columns."""
    of_rows = rows.new_empty(len(rows))
    of_columns = rows.new_empty(-(-len(rows) // _BLOCK), _COLUMNS)
    (_add_up_on_cpu if rows.is_cpu else _add_up)(rows, of_rows, of_columns)
    return of_rows, of_columns


def _add_up_on_cpu(rows: Tensor, of_rows: Tensor, of_columns: Tensor) -> None:
    """Read each block once, and once more from the cache; torch would write the products down."""
    words, sums = (x.numpy().view(np.uint64) for x in (rows, of_rows))
    threads = torch.get_num_threads()
    at_once = max(1, min(_BLOCKS_AT_ONCE, len(of_columns) // threads))

    def add_up(first: int) -> None:
        last = first + at_once
        parts = rows[first * _BLOCK : last * _BLOCK].split(_BLOCK)
        for number, (part, out) in enumerate(zip(parts, of_columns[first:last], strict=True)):
            here = slice((first + number) * _BLOCK, (first + number + 1) * _BLOCK)
            np.einsum("rc,c->r", words[here], _FACTORS, out=sums[here])
            torch.sum(part, 0, out=out)

    spread(add_up, range(0, len(of_columns), at_once), threads)


def _add_up(rows: Tensor, of_rows: Tensor, of_columns: Tensor) -> None:
    """Do so in few and large operations, as a GPU needs it."""
    factors = torch.from_numpy(_FACTORS.view(np.int64)).to(rows.device)
    for part, sums in zip(rows.split(_ROWS_AT_ONCE), of_rows.split(_ROWS_AT_ONCE), strict=True):
        torch.sum(part * factors, 1, out=sums)
    whole, rest = divmod(len(rows), _BLOCK)
    torch.sum(rows[: len(rows) - rest].view(whole, _BLOCK, _COLUMNS), 1, out=of_columns[:whole])
    if rest:
        torch.sum(rows[-rest:], 0, out=of_columns[whole])


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
