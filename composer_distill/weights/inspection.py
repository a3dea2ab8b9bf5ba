"""What a source holds, in words, without a model."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from composer_distill.weights.checkpoint import open_source
from composer_distill.weights.contents import Contents
from composer_distill.weights.errors import named_errors, plain, with_remedy, without_secrets
from composer_distill.weights.files import algorithms
from composer_distill.weights.fingerprint import fingerprint_of

MAX_KEYS = 1000
MAX_BESIDE = 100
MAX_EXPANDED = 1 << 20
REFUSED = "NOT to be read as a checkpoint"


def describe(source: str) -> str:
    """Tell what a checkpoint holds, and whether it is safe to read.

    Args:
        source: A path, or the URI of an object store.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        PermissionError: If it may not be read.

    Example:
        >>> import pathlib, tempfile, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save({"weight": torch.zeros(2, 3)}, path)
        >>> print(describe(str(path)).partition(chr(10))[2])
        a state_dict of 1 tensors, 6 values, 24 B
        safe to read: tensors and plain data only
        fingerprint: fa8e2862d45b
        weights:
          weight  (2, 3)  float32
    """
    shown = plain(without_secrets(source), 1000)
    with named_errors("inspect", source):
        try:
            with open_source(source) as contents:
                return "\n".join([shown, *_lines(contents)])
        except ValueError as error:
            return f"{shown}\n{REFUSED}: {with_remedy(str(error))}"


def _lines(contents: Contents) -> list[str]:
    specs = contents.specs
    values = sum(_numel(spec.shape) for spec in specs.values())
    size = sum(_numel(spec.shape) * spec.dtype.itemsize for spec in specs.values())
    keys = [
        f"  {plain(key)}  {spec.shape}  {str(spec.dtype).removeprefix('torch.')}"
        for key, spec in list(specs.items())[:MAX_KEYS]
    ]
    more = len(specs) - len(keys)
    return [
        f"a {contents.kind} of {len(specs)} tensors, {values:,} values, {_bytes(size)}",
        "safe to read: tensors and plain data only",
        f"fingerprint: {fingerprint_of(specs, partial(_read, contents))}",
        *_beside(contents.stored),
        "weights:",
        *keys,
        *([f"  and {more} more"] if more else []),
    ]


def _beside(stored: Mapping[str, Any]) -> list[str]:
    if not stored:
        return []
    keys = [plain(key) for key in list(stored)[:MAX_BESIDE]]
    lines = [f"stored beside the weights: {', '.join(keys)}"]
    named = [plain(name) for name, _ in algorithms(stored)[:MAX_BESIDE]]
    lines += [f"  algorithms: {', '.join(named)}"] if named else []
    time = _within(stored, "timestamp", "Timestamp")
    if isinstance(time, Mapping):
        units = [f"{unit} {plain(time.get(unit))}" for unit in ("epoch", "batch", "sample")]
        lines.append(f"  trained until: {', '.join(units)}")
    facts = {
        "run": _within(stored, "run_name"),
        "Composer": _within(stored, "metadata", "composer_env_info", "composer_version"),
        "torch": _within(stored, "metadata", "torch_version"),
        "Hugging Face class": _within(
            stored, "integrations", "huggingface", "model", "config", "class"
        ),
    }
    return lines + [f"  {what}: {plain(fact)}" for what, fact in facts.items() if type(fact) is str]


def _within(stored: Any, *keys: str) -> Any:
    for key in keys:
        stored = stored.get(key) if isinstance(stored, Mapping) else None
    return stored


def _read(contents: Contents, key: str) -> Tensor:
    """Read a weight, unless it claims to be far larger than the bytes that it has."""
    weight = contents.read(key)
    size = _numel(weight.shape) * weight.dtype.itemsize
    if size > MAX_EXPANDED and size > weight.untyped_storage().nbytes():
        raise ValueError(f"its {plain(key)} is {weight.shape}, far more than the bytes it has")
    return weight


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def _bytes(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.4g} {unit}"
        size /= 1000
    return f"{size:.4g} GB"
