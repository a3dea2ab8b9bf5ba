"""The names that torch.save writes, and what each of them stands for here."""

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from composer_distill.weights.contents import OddTensor
from composer_distill.weights.pickled import arrays
from composer_distill.weights.pickled.machine import Named, Refused, is_plain
from composer_distill.weights.pickled.reach import Broken, Record
from composer_distill.weights.wording import plain

MAX_BYTES_ASKED = 1 << 24
_LARGEST = 1 << 62


@dataclass(frozen=True)
class StorageKind:
    """The name of a storage class: the type of its values, None where the tensor tells it."""

    dtype: torch.dtype | None


@dataclass(frozen=True)
class Stored:
    """Bytes of a file, and what they are values of."""

    storage: torch.UntypedStorage
    kind: StorageKind


def find(path: str) -> Any:
    """Answer a name in a pickle of torch.save's.

    Raises:
        Refused: If it is not one of tensors and plain data.

    Example:
        >>> find("torch.float32")
        torch.float32
        >>> find("posix.system")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        composer_distill.weights.pickled.machine.Refused: it asks for posix.system, which is no ...
    """
    path = path.replace("__builtin__.", "builtins.", 1)
    if path in _MAKERS:
        return Named(path, _MAKERS[path])
    module, _, name = path.rpartition(".")
    if name in _STORAGES and module in ("torch", "torch.cuda", "torch.storage"):
        return _STORAGES[name]
    constant = vars(torch).get(name) if module == "torch" else None
    if isinstance(constant, torch.dtype | torch.layout | torch.memory_format | torch.qscheme):
        return constant
    raise Refused(refusal(path.removeprefix("builtins.")))


def refusal(asked: str) -> str:
    """Say that a file asks for more than data.

    Example:
        >>> refusal("posix.system").split(",")[0]
        'it asks for posix.system'
    """
    return (
        f"it asks for {plain(asked)}, which is no tensor or plain data, so it was not read "
        "further. Have whoever trusts it save its state_dict() alone"
    )


def size_of(lengths: Any = ()) -> torch.Size:
    """A ``torch.Size`` of a pickle, which may be one of places too.

    Raises:
        Broken: If it is no sequence of numbers.
    """
    return torch.Size(_lengths(lengths, least=-_LARGEST))


def layout_of(name: Any) -> torch.layout:
    """A layout that torch pickled by its name."""
    found = vars(torch).get(name.removeprefix("torch.")) if type(name) is str else None
    if not isinstance(found, torch.layout):
        raise Broken("a layout that is not known")
    return found


def storage_asked(asked: Any, length: int) -> tuple[StorageKind, str, int]:
    """Take apart what a pickle says of a storage: its kind, its key, and how many values it has.

    Raises:
        Broken: If it says anything else.
    """
    if type(asked) is not tuple or len(asked) != length or asked[0] not in ("storage", b"storage"):
        raise Broken("a persistent id that is no storage's")
    _, kind, key, _, count, *_ = asked
    if type(kind) is not StorageKind or type(key) is not str:
        raise Broken("a storage of no kind")
    if type(count) is not int or not 0 <= count < _LARGEST:
        raise Broken("a storage of no length")
    return kind, key, count


def _lengths(value: Any, least: int = 0) -> tuple[int, ...]:
    if type(value) not in (tuple, list, torch.Size) or len(value) > 64:
        raise Broken("a shape that is none")
    if not all(type(length) is int and least <= length < _LARGEST for length in value):
        raise Broken("a shape that is none")
    return tuple(value)


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v2``, and ``_rebuild_tensor`` of old."""
    if type(stored) is not Stored or stored.kind.dtype is None:
        raise Broken("a tensor without a type")
    return _view(stored, stored.kind.dtype, offset, size, stride, rest[2:3])


def _typed(stored: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v3``, whose storage has no type of its own."""
    dtype = rest[2] if len(rest) > 2 else None
    if type(stored) is not Stored or not isinstance(dtype, torch.dtype):
        raise Broken("a tensor without a type")
    return _view(stored, dtype, offset, size, stride, rest[3:4])


def _view(
    stored: Stored, dtype: torch.dtype, offset: Any, size: Any, stride: Any, marks: tuple[Any, ...]
) -> Tensor:
    shape, steps = _lengths(size), _lengths(stride)
    if len(shape) != len(steps) or type(offset) is not int or not 0 <= offset < _LARGEST:
        raise Broken("a tensor of no shape")
    count, last = 1, offset
    for length, step in zip(shape, steps, strict=True):
        count, last = count * length, last + (length - 1) * step
    if count >= _LARGEST or (count and (last + 1) * dtype.itemsize > stored.storage.nbytes()):
        raise Broken("a tensor that is larger than its bytes")
    tensor = torch.empty(0, dtype=dtype).set_(stored.storage, offset, shape, steps)
    kept = marks[0] if marks and type(marks[0]) is dict else {}
    tensor = tensor.conj() if kept.get("conj") is True else tensor
    # A view too: to negate what is expanded would fill memory
    return cast(Any, torch)._neg_view(tensor) if kept.get("neg") is True else tensor


def _first(value: Any, *_: Any) -> Any:
    """A parameter is its tensor; whether it is trained, its hooks and attributes are left out."""
    if not isinstance(value, Tensor | OddTensor):
        raise Broken("a parameter that is no tensor")
    return value


def _retyped(make: Any, kind: Any, args: Any, *_: Any) -> Any:
    """``torch._tensor._rebuild_from_type_v2``: a tensor with attributes, which are left out."""
    if type(make) is not Named or type(args) is not tuple:
        raise Broken("a tensor of no kind")
    if type(kind) is not Named or kind.path not in _TENSOR_CLASSES:
        raise Refused(refusal(kind.path if type(kind) is Named else "a class of tensors"))
    return make.make(*args)


def _from_numpy(data: Any, dtype: Any, *_: Any) -> Tensor:
    """How tensors of devices without storage were written."""
    tensor = data if isinstance(data, Tensor) else torch.from_numpy(arrays.array(data))
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise Broken("a tensor that is larger than its bytes")
    return tensor.to(dtype) if isinstance(dtype, torch.dtype) else tensor


def _dict(items: Any = ()) -> dict[Any, Any]:
    if type(items) is dict:  # a Counter
        return dict(items)
    if type(items) not in (list, tuple) or not all(_is_pair(item) for item in items):
        raise Broken("a dict of no pairs")
    return {key: value for key, value in items}  # noqa: C416


def _is_pair(item: Any) -> bool:
    return type(item) in (list, tuple) and len(item) == 2 and is_plain(item[0])


def _set(items: Any = ()) -> set[Any]:
    if type(items) is not list or not all(map(is_plain, items)):
        raise Broken("a set of no plain values")
    return set(items)


def _encode(text: Any = "", codec: Any = "latin1", *_: Any) -> bytes:
    if type(text) is not str or type(codec) is not str or codec not in ("latin1", "latin-1"):
        raise Broken("bytes in another encoding")
    return text.encode("latin1")


def _bytearray(data: Any = b"", codec: Any = None) -> bytearray:
    if type(data) is int and data > MAX_BYTES_ASKED:
        raise MemoryError(f"{data:,} bytes that it does not hold")
    if type(data) is str:
        return bytearray(_encode(data, codec))
    if type(data) is not bytes:
        raise Broken("bytes of no bytes")
    return bytearray(data)


def _text(text: Any) -> str:
    if type(text) is not str:
        raise Broken("a version that is no text")
    return text


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise Broken("a complex number of no numbers")
    return complex(real, imaginary)


def _duration(*numbers: Any) -> datetime.timedelta:
    if len(numbers) > 3 or not all(type(number) is int for number in numbers):
        raise Broken("a duration of no numbers")
    return datetime.timedelta(*numbers)


def _stand_in(path: str) -> Callable[..., Record]:
    return lambda *args: Record(path, args)


_TENSOR_CLASSES = (
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
)
_ODD = {
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "without values",
    "_rebuild_wrapper_subclass": "of a class of its own",
}
_STORAGES: Mapping[str, StorageKind] = {
    kind: StorageKind(dtype) for dtype, kind in torch.storage._dtype_to_storage_type_map().items()
} | {"UntypedStorage": StorageKind(None)}

_MAKERS: Mapping[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_numpy,
    "torch._utils._rebuild_xla_tensor": _from_numpy,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_numpy,
    "torch._tensor._rebuild_from_type_v2": _retyped,
    **{f"torch._utils.{name}": partial(OddTensor.of, kind) for name, kind in _ODD.items()},
    **dict.fromkeys(_TENSOR_CLASSES, _first),
    "torch.Size": size_of,
    "torch.device": _stand_in("torch.device"),
    "torch.serialization._get_layout": layout_of,
    "torch.torch_version.TorchVersion": _text,
    "collections.OrderedDict": _dict,
    "collections.Counter": _dict,
    "builtins.set": _set,
    "builtins.complex": _complex,
    "builtins.bytearray": _bytearray,
    "builtins.bytes": lambda: b"",
    "_codecs.encode": _encode,
    "datetime.timedelta": _duration,
    **arrays.names(_stand_in),
}
