"""What a teacher read of a sample, as 128 bits: the name that its answer is kept under.

A key is made of the values, types and shapes of a sample's tensors. Padding is left out, on
whichever side it stands, so that the same text in another batch has the same key; so has a sample
in another order, on another rank or in another epoch. An answer that is not there is not found: it
can't be taken for another's.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from composer_distill.caching.extra import need
from composer_distill.weights.wording import plain

NO_LABEL = -100
_MASKS = ("attention_mask", "decoder_attention_mask")
# Entries with one value a position: what stands at padding is not read
BY_POSITION = ("input_ids", "token_type_ids", "position_ids", "sequence_id")
_BY_DECODER_POSITION = ("decoder_input_ids", "labels")


class Read(NamedTuple):
    """The samples of a batch, as a teacher read them.

    Attributes:
        keys: One key a sample, ``(B, 2)`` unsigned 64-bit halves.
        mask: True where the teacher answers a position that counts for it, ``(B, T)`` on the CPU;
            None where its answer has no positions of its own.
    """

    keys: np.ndarray
    mask: Tensor | None


class _Cut(NamedTuple):
    """Which positions of the samples are attended to: from ``first`` to before ``last``."""

    mask: np.ndarray  # (B, T), integers
    first: np.ndarray
    last: np.ndarray


def read_batch(
    batch: Any,
    fields: Sequence[str] | None,
    label_keys: Collection[str] = (),
    lacked: Collection[str] = (),
) -> Read:
    """Return what a teacher reads of each sample of a batch.

    Args:
        batch: A tensor, a sequence whose first element is the input, or a mapping.
        fields: Names of a mapping's entries that the teacher reads; None for all but
            ``label_keys``.
        label_keys: Names of entries that are read only where ``fields`` names them.
        lacked: Names of entries that the teacher reads too, and that a batch may not have; but for
            a mask, which may say what none says.

    Raises:
        TypeError: If something that is read is neither tensor nor plain data.
        ValueError: If the samples can't be told apart, an entry of ``fields`` is missing, or one of
            ``lacked`` is there.

    Example:
        >>> short = {"input_ids": torch.tensor([[5, 6]])}
        >>> ids, mask = torch.tensor([[9, 5, 6]]), torch.tensor([[0, 1, 1]])
        >>> padded = {"input_ids": ids, "attention_mask": mask}
        >>> bool((read_batch(short, None).keys == read_batch(padded, None).keys).all())
        True
    """
    entries = dict(_entries(batch, fields, frozenset(label_keys), lacked))
    count = _count(entries)
    masks = {name: _cut(entries.pop(name)) for name in _MASKS if _is_mask(entries.get(name))}
    if "labels" in entries and "decoder_attention_mask" not in masks and fields is not None:
        masks["decoder_attention_mask"] = _cut(entries["labels"] != NO_LABEL)
    pieces: list[list[bytes]] = [[] for _ in range(count)]
    for name in sorted(entries):
        for sample, piece in zip(pieces, _pieces(name, entries[name], masks, count), strict=True):
            sample.append(piece)
    for name in sorted(masks):
        whole = not _tells_all(masks[name], name, entries)
        given = _packed(entries.get("position_ids"), masks[name]) & (name == _MASKS[0])
        for sample, piece in zip(pieces, _patterns(name, masks[name], whole, given), strict=True):
            sample.append(piece)
    digest = need("xxhash").xxh3_128_digest
    joined = b"".join(digest(b"".join(sample)) for sample in pieces)
    return Read(np.frombuffer(joined, np.uint64).reshape(count, 2), _answered(masks, entries))


def _answered(masks: Mapping[str, _Cut], entries: Mapping[str, Any]) -> Tensor | None:
    """Return the positions of the answer: a decoder's, or those that are attended to."""
    decoded = "labels" in entries or any(name.startswith("decoder_") for name in entries)
    cut = masks.get(_MASKS[1] if decoded else _MASKS[0])
    return None if cut is None else torch.from_numpy(cut.mask != 0)


def _entries(
    batch: Any, fields: Sequence[str] | None, labels: frozenset[str], lacked: Collection[str]
) -> Iterator[Any]:
    """Give the names and values of what is read."""
    if isinstance(batch, Sequence) and not isinstance(batch, str) and batch:
        batch = batch[0]
    if not isinstance(batch, Mapping):
        yield "", batch
        return
    for name in lacked:
        if batch.get(name) is not None and name not in _MASKS:
            raise ValueError(
                f"the batch holds {plain(name)!r}, which the teacher would read too, and which no "
                "batch held when its answers were kept. Use the data and the collator that the "
                "cache was written with."
            )
    names = [name for name in batch if name not in labels] if fields is None else fields
    masks = [name for name in _MASKS if name in lacked]  # none was given: 1 throughout
    for name in [*names, *masks]:
        if name in batch and batch[name] is not None:
            yield name, batch[name]
        elif fields is not None and name not in _MASKS:
            raise ValueError(
                f"the batch lacks {plain(name)!r}, which the teacher read when its answers were "
                f"kept; it has {list(batch)}. Use the data and the collator that the cache was "
                "written with."
            )


def _count(entries: Mapping[str, Any]) -> int:
    """Return the number of samples: that of the longest first axis."""
    lengths = [len(v) for v in entries.values() if (isinstance(v, list) or _has_axis(v))]
    if not lengths:
        raise ValueError(
            "the batch holds no tensor whose first axis counts the samples, so that its answers "
            "can't be kept. Pass batches of tensors."
        )
    return max(lengths)


def _has_axis(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _is_mask(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and not value.is_floating_point()


def _cut(mask: Tensor) -> _Cut:
    """Find the padding at both ends of each sample."""
    values = mask.to("cpu", torch.int64).numpy()
    read, length = values != 0, values.shape[1]
    some = read.any(1)
    first = np.where(some, read.argmax(1), 0)
    last = np.where(some, length - read[:, ::-1].argmax(1), 0)
    return _Cut(values, first, last)


def _governed(name: str) -> tuple[str, ...]:
    return BY_POSITION if name == _MASKS[0] else _BY_DECODER_POSITION


def _is_cut(value: Any, cut: _Cut) -> bool:
    return isinstance(value, Tensor) and tuple(value.shape) == cut.mask.shape


def _tells_all(cut: _Cut, name: str, entries: Mapping[str, Any]) -> bool:
    """Return whether padding can be left out: everything that the mask is about was cut by it."""
    about = {
        key
        for key, value in entries.items()
        if isinstance(value, Tensor) and tuple(value.shape[:2]) == cut.mask.shape
    }
    cut_by_it = {key for key in _governed(name) if _is_cut(entries.get(key), cut)}
    others = {key for key in about if key in (*BY_POSITION, *_BY_DECODER_POSITION)}
    return bool(cut_by_it) and about - others == set()


def _packed(places: Any, cut: _Cut) -> np.ndarray:
    """Return which rows hold several texts, that a model may keep apart only without a mask."""
    shapes = (cut.mask.shape, (1, *cut.mask.shape[1:]))
    if not isinstance(places, Tensor) or tuple(places.shape) not in shapes:
        return np.zeros(len(cut.mask), bool)
    after = np.arange(1, cut.mask.shape[1])
    inside = (after > cut.first[:, None]) & (after < cut.last[:, None])
    return ((np.diff(places.to("cpu").numpy(), axis=1) != 1) & inside).any(1)


def _patterns(name: str, cut: _Cut, whole: bool, given: np.ndarray) -> Iterator[bytes]:
    """Give what a mask says within the attended span.

    Nothing where it is 1 throughout, but for rows of which it counts that it was given.
    """
    for row, first, last, told in zip(cut.mask, cut.first, cut.last, given, strict=True):
        span = row if whole else row[first:last]
        plain = not whole and not told and (span == 1).all()
        yield b"" if plain else f"{name}\0{len(span)}\0".encode() + span.tobytes()


def _pieces(name: str, value: Any, masks: Mapping[str, _Cut], count: int) -> Iterator[bytes]:
    """Give what each sample has of an entry, with its name, type and shape."""
    if not isinstance(value, Tensor):
        yield from _plain_pieces(name, value, count)
        return
    head = f"{name}\0{value.dtype}\0"
    rows = _bytes_of(value)
    if value.ndim == 0 or len(value) != count:  # one for all samples
        whole = f"{head}{tuple(value.shape)}\0".encode() + rows.tobytes()
        yield from [whole] * count
        return
    cut = next((cut for mask, cut in masks.items() if name in _governed(mask)), None)
    if cut is None or not _is_cut(value, cut):
        start = f"{head}{tuple(value.shape[1:])}\0".encode()
        yield from (start + row.tobytes() for row in rows)
        return
    size = value.element_size()
    for row, seen, first, last in zip(rows, cut.mask, cut.first, cut.last, strict=True):
        span = row[first * size : last * size].reshape(-1, size)
        hidden = seen[first:last] == 0
        if hidden.any():  # within the span: what stands there is not read
            span = np.where(hidden[:, None], 0, span).astype(np.uint8)
        yield f"{head}{(int(last - first),)}\0".encode() + span.tobytes()


def _bytes_of(value: Tensor) -> np.ndarray:
    """Return a tensor's memory: one row of bytes for each entry of the first axis."""
    value = value.detach().to("cpu").contiguous()
    rows = len(value) if value.ndim else 1
    return value.reshape(rows, -1).view(torch.uint8).numpy().reshape(rows, -1)


def _plain_pieces(name: str, value: Any, count: int) -> Iterator[bytes]:
    """Give what each sample has of an entry that is no tensor."""
    if isinstance(value, list | tuple) and len(value) == count:
        for item in value:
            yield f"{name}\0".encode() + _plain(name, item)
    else:
        yield from [f"{name}\0".encode() + _plain(name, value)] * count


def _plain(name: str, value: Any) -> bytes:
    if isinstance(value, Tensor):
        return f"{value.dtype}\0{tuple(value.shape)}\0".encode() + _bytes_of(value).tobytes()
    if isinstance(value, list | tuple):
        return b"(" + b",".join(_plain(name, item) for item in value) + b")"
    if isinstance(value, Mapping):
        return (
            b"{"
            + b",".join(f"{key}\0".encode() + _plain(name, value[key]) for key in sorted(value))
            + b"}"
        )
    if value is None or isinstance(value, str | int | float | bool | bytes):
        return repr(value).encode()
    raise TypeError(
        f"the batch's {name or 'input'} holds a {type(value).__name__}, which has no values to "
        "know it by. Keep it out of the batch, or make it a tensor."
    )
