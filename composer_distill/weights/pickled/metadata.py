"""The ``.metadata`` of a sharded checkpoint, read into stand-ins and made anew from them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.distributed.checkpoint import filesystem, metadata

from composer_distill.weights.pickled import opcodes, tensors
from composer_distill.weights.pickled.machine import Named, Refused
from composer_distill.weights.pickled.reach import Broken, Record

_METADATA = "torch.distributed.checkpoint.metadata"
_CLASSES: Mapping[str, Any] = {
    f"{each.__module__}.{each.__qualname__}": each
    for each in (
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        filesystem._StorageInfo,
    )
}
_INDEX = f"{_METADATA}.MetadataIndex"
_PROPERTIES = f"{_METADATA}.TensorProperties"
# What tells nothing that is needed: it stays a stand-in.
_IDLE = frozenset(
    (
        f"{_METADATA}.StorageMeta",
        f"{_METADATA}._MEM_FORMAT_ENCODING",
        "pathlib.PosixPath",
        "pathlib.PurePosixPath",
        "pathlib._local.PosixPath",
    )
)
_PLAIN = (
    "torch.Size",
    "torch.serialization._get_layout",
    "collections.OrderedDict",
)


def read_metadata(data: bytes) -> metadata.Metadata:
    """Read what a ``.metadata`` says.

    Args:
        data: Its bytes.

    Raises:
        Refused: If it asks for more than the classes of a checkpoint's metadata.
        ValueError: If it is broken, or something else.
    """
    found = opcodes.read_bytes(data, _find)
    if type(found) is not Record or found.path != f"{_METADATA}.Metadata":
        kind = found.path.rpartition(".")[2] if type(found) is Record else type(found).__name__
        raise Refused(f"its .metadata holds no checkpoint metadata but {kind}")
    return _real(found)


def _find(path: str) -> Any:
    if path in _PLAIN:
        return tensors.find(path)
    if path in _CLASSES or path in _IDLE or path in (_INDEX, _PROPERTIES):
        return Named(path, lambda *args: Record(path, args))
    module, _, name = path.rpartition(".")
    constant = vars(torch).get(name) if module == "torch" else None
    if isinstance(constant, torch.dtype | torch.layout):
        return constant
    raise Refused(tensors.refusal(path))


def _real(value: Any) -> Any:
    """Torch's own objects for the stand-ins within a value, made by their constructors."""
    if type(value) is Record:
        return _MAKERS[value.path](value) if value.path in _MAKERS else None
    if type(value) is list:
        return [_real(item) for item in value]
    if type(value) is dict:
        return {_key(key): _real(item) for key, item in value.items()}
    return value


def _key(key: Any) -> Any:
    if type(key) is Record and key.path != _INDEX:
        raise Broken(f"a {key.path.rpartition('.')[2]} as a key")
    return _real(key)


def _made(record: Record) -> Any:
    kind = _CLASSES[record.path]
    known = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: _real(item) for name, item in _state(record).items() if name in known})


def _index(record: Record) -> metadata.MetadataIndex:
    state = _state(record)
    name, offset, place = (state.get(key) for key in ("fqn", "offset", "index"))
    if type(name) is not str or type(offset) not in (torch.Size, type(None)):
        raise Broken("an index of no place")
    return metadata.MetadataIndex(name, offset, place if type(place) is int else None)


def _properties(record: Record) -> metadata.TensorProperties:
    """Of what torch packs into a tuple, the type of the values is needed alone."""
    state = record.state
    dtype = state[0] if type(state) is tuple and state else None
    if not isinstance(dtype, torch.dtype):
        raise Broken("a tensor without a type")
    return metadata.TensorProperties(dtype=dtype)


def _state(record: Record) -> Mapping[str, Any]:
    state = {} if record.state is None else record.state
    if type(state) is not dict or record.args:
        raise Broken(f"a {record.path.rpartition('.')[2]} without its fields")
    return state


_MAKERS: Mapping[str, Callable[[Record], Any]] = {
    **dict.fromkeys(_CLASSES, _made),
    _INDEX: _index,
    _PROPERTIES: _properties,
}
