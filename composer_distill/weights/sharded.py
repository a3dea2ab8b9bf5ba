"""Sharded checkpoints: a folder that torch.distributed.checkpoint wrote."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from composer_distill.weights.contents import Contents, Spec
from composer_distill.weights.errors import plain
from composer_distill.weights.pickles import check_archive, read_metadata, read_pickled
from composer_distill.weights.tiling import fault_of_tiling
from composer_distill.weights.window import Window

METADATA = ".metadata"
_MODEL = ("state", "model")


def open_sharded(folder: Path) -> Contents:
    """Open a sharded checkpoint; each process that does so reads it for itself.

    Its pieces are read one at a time, so one tensor at most is in memory.

    Args:
        folder: The folder with the ``.metadata``.

    Raises:
        ValueError: If the metadata is no such thing, or the folder holds no weights.
    """
    metadata = read_metadata(folder / METADATA)
    _check(metadata)
    names = _model_names(metadata)
    if not names:
        shown = ", ".join(map(plain, list(metadata.state_dict_metadata)[:4])) or "nothing"
        raise ValueError(f"it is a sharded checkpoint without weights (holds {shown})")
    specs = {name: _spec(metadata, key) for name, key in names.items()}
    read = lambda name: _read_tensor(folder, metadata, names[name])  # noqa: E731
    return Contents(folder, "sharded checkpoint", specs, read, stored=_Stored(folder, metadata))


def _spec(metadata: Metadata, key: str) -> Spec:
    """Describe a tensor whose chunks fill it, so that no memory that nothing wrote is a weight."""
    entry = _tensor_entry(metadata, key)
    fault = fault_of_tiling(entry.size, [(chunk.offsets, chunk.sizes) for chunk in entry.chunks])
    if fault:
        raise ValueError(f"the pieces of its {plain(key)} {fault}; save the checkpoint again")
    return Spec(tuple(entry.size), entry.properties.dtype)


def _tensor_entry(metadata: Metadata, key: str) -> TensorStorageMetadata:
    entry = metadata.state_dict_metadata[key]
    if not isinstance(entry, TensorStorageMetadata):
        raise ValueError(f"its entry {plain(key)} is no tensor")
    return entry


def _check(metadata: Metadata) -> None:
    entries, places = metadata.state_dict_metadata, metadata.storage_data
    if not (
        isinstance(entries, dict)
        and isinstance(places, dict)
        and all(isinstance(key, str) and _is_entry(entry) for key, entry in entries.items())
        and all(map(_is_place, places.values()))
    ):
        raise ValueError("its .metadata is not what torch.distributed.checkpoint writes")


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, TensorStorageMetadata):
        return isinstance(entry, BytesStorageMetadata)
    return (
        isinstance(entry.size, torch.Size)
        and isinstance(getattr(entry.properties, "dtype", None), torch.dtype)
        and isinstance(entry.chunks, list)
        and all(
            isinstance(chunk, ChunkStorageMetadata)
            and isinstance(chunk.offsets, torch.Size)
            and isinstance(chunk.sizes, torch.Size)
            and len(chunk.offsets) == len(chunk.sizes) == len(entry.size)
            for chunk in entry.chunks
        )
    )


def _is_place(place: Any) -> bool:
    return (
        isinstance(place, _StorageInfo)
        and isinstance(place.relative_path, str)
        and isinstance(place.offset, int)
        and isinstance(place.length, int)
    )


def _paths(metadata: Metadata) -> dict[str, tuple[Any, ...]]:
    """Where each entry stood before torch wrote its path as one name."""
    known = metadata.planner_data if isinstance(metadata.planner_data, Mapping) else {}
    return {key: tuple(known.get(key, (key,))) for key in metadata.state_dict_metadata}


def _model_names(metadata: Metadata) -> dict[str, str]:
    """The weights' names, with the entries that hold them."""
    tensors = {
        key: path
        for key, path in _paths(metadata).items()
        if isinstance(metadata.state_dict_metadata[key], TensorStorageMetadata)
    }
    for start in (_MODEL, _MODEL[1:], ("state_dict",)):
        depth = len(start)
        inside = {
            ".".join(map(str, path[depth:])): key
            for key, path in tensors.items()
            if path[:depth] == start and len(path) > depth
        }
        if len(inside) < sum(
            path[:depth] == start and len(path) > depth for path in tensors.values()
        ):
            raise ValueError("two of its weights have one name")
        if inside:
            return inside
    return {key: key for key, path in tensors.items() if len(path) == 1}


def _read_tensor(folder: Path, metadata: Metadata, key: str) -> Tensor:
    entry = _tensor_entry(metadata, key)
    read = partial(_read_chunk, folder, metadata, key, entry.properties.dtype)
    if len(entry.chunks) == 1:  # without a second copy
        return read(entry.chunks[0])
    whole = torch.empty(entry.size, dtype=entry.properties.dtype)
    for chunk in entry.chunks:
        ends = map(sum, zip(chunk.offsets, chunk.sizes, strict=True))
        whole[tuple(map(slice, chunk.offsets, ends))] = read(chunk)
    return whole


def _read_chunk(
    folder: Path, metadata: Metadata, key: str, dtype: torch.dtype, chunk: ChunkStorageMetadata
) -> Tensor:
    piece = _read_piece(folder, metadata, MetadataIndex(key, chunk.offsets))
    if not isinstance(piece, Tensor) or piece.shape != chunk.sizes or piece.dtype != dtype:
        raise ValueError(
            f"its piece of {plain(key)} at {tuple(chunk.offsets)} has another shape or type than "
            f"its .metadata says ({tuple(chunk.sizes)}, {dtype}); save the checkpoint again"
        )
    if piece.nbytes > piece.untyped_storage().nbytes():
        raise ValueError(f"its piece of {plain(key)} claims to be more than the bytes it has")
    return piece


def _read_piece(folder: Path, metadata: Metadata, index: MetadataIndex) -> Any:
    info = metadata.storage_data.get(index)
    if info is None:
        raise ValueError(f"its .metadata does not say where {plain(index.fqn)} is")
    if getattr(info, "transform_descriptors", None):
        raise ValueError(f"it was written with extensions ({info.transform_descriptors})")
    file = _inside(folder, info.relative_path)
    if not 0 <= info.offset <= info.offset + info.length <= file.stat().st_size:
        raise ValueError(f"its file {file.name} is truncated")
    with file.open("rb") as stream:
        view = cast(IO[bytes], Window(stream, info.offset, info.length))
        check_archive(view)
        view.seek(0)
        return read_pickled(view)


def _inside(folder: Path, name: object) -> Path:
    """A file of the folder, and never one outside of it."""
    path = folder / str(name)
    if Path(str(name)).is_absolute() or folder.resolve() not in path.resolve().parents:
        raise ValueError(f"it names a file outside of its folder ({plain(name)})")
    if not path.is_file():
        raise ValueError(f"its file {plain(name)} is missing; copy the whole folder again")
    return path


class _Stored(Mapping[str, Any]):
    """What lies beside the weights, read when it is asked for."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self._read = partial(_read_piece, folder, metadata)
        self._keys: dict[str, dict[tuple[Any, ...], str]] = {}
        for key, path in _paths(metadata).items():
            if len(path) < 2 or path[0] != "state" or path[:2] == _MODEL:
                continue
            if isinstance(metadata.state_dict_metadata[key], BytesStorageMetadata):
                self._keys.setdefault(str(path[1]), {})[path[2:]] = key

    def __getitem__(self, name: str) -> Any:
        found: Any = {}
        for path, key in self._keys[name].items():
            value = self._read(MetadataIndex(key))
            if not path:
                return value
            inner = found
            for part in path[:-1]:
                inner = inner.setdefault(part, {})
            inner[path[-1]] = value
        return found

    def __iter__(self):  # noqa: ANN204
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)
