"""One local file, of whatever format, opened as contents."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from composer_distill.weights.contents import Contents, holds_weights, of_tensors, specs_of
from composer_distill.weights.errors import plain
from composer_distill.weights.keys import match_keys
from composer_distill.weights.pickles import check_archive, is_archive, read_pickled
from composer_distill.weights.safe_tensors import looks_like_safetensors, open_safetensors
from composer_distill.weights.unpacking import unpacked

# Where others keep the weights in a dictionary of more than weights.
NESTS = ("state_dict", "model_state_dict", "model")


@contextmanager
def open_file(path: Path, *, ema: bool | None = None) -> Iterator[Contents]:
    """Open one file, by what it holds and not by what it is called.

    Args:
        path: The file.
        ema: Which weights of a Composer checkpoint trained with EMA: see ``load_weights``.

    Raises:
        ValueError: If it is no checkpoint, is damaged, or asks for more than data.
    """
    if not path.is_file():
        raise ValueError("it is no regular file; name a file or a folder")
    if path.stat().st_size == 0:
        raise ValueError("it is an empty file; copy or save it again")
    with unpacked(path) as file:
        if looks_like_safetensors(file):
            with open_safetensors(file) as (tensors, header):
                yield Contents(path, "safetensors file", header, tensors, mapped=True)
        else:
            is_zip = is_archive(file)
            if is_zip:
                check_archive(file)
            found = read_pickled(file, mmap=is_zip)
            yield interpret(path, found, mapped=is_zip, ema=ema)


def interpret(path: Path, found: object, *, mapped: bool, ema: bool | None) -> Contents:
    """Find the weights in what a file holds.

    Args:
        path: The file.
        found: What was read from it.
        mapped: Whether its tensors are views of the mapped file.
        ema: Which weights of a Composer checkpoint trained with EMA.

    Raises:
        ValueError: If there are none.
    """
    composer = _composer_state(found)
    if composer is not None:
        weights = choose_ema(composer, ema)
        rest = {key: value for key, value in composer.items() if key != "model"}
        return of_tensors(path, "Composer checkpoint", weights, mapped=mapped, stored=rest)
    if ema:
        raise ValueError("ema=True was asked for, and it is no Composer checkpoint; leave ema out")
    if holds_weights(found):
        return of_tensors(path, "state_dict", found, mapped=mapped)  # pyright: ignore[reportArgumentType]
    nested = dict(found) if isinstance(found, Mapping) else {}
    for nest in NESTS:
        if holds_weights(nested.get(nest)):
            rest = {key: value for key, value in nested.items() if key != nest}
            kind = f"state_dict under {nest!r}"
            return of_tensors(path, kind, nested[nest], mapped=mapped, stored=rest)
    raise ValueError(
        f"it is no checkpoint: expected Composer's {{'state': {{'model': ...}}}}, a state_dict, or "
        f"a dict that holds one under {' or '.join(map(repr, NESTS))}; found {_summary(found)}. "
        "Save the model's state_dict()"
    )


def _composer_state(found: object) -> dict[str, Any] | None:
    state = found.get("state") if isinstance(found, Mapping) else None
    if isinstance(state, Mapping) and holds_weights(state.get("model")):
        return dict(state)
    return None


def _summary(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    keys = ", ".join(plain(key, 40) for key in list(found)[:6]) or "nothing in it"
    return f"a {type(found).__name__} of {keys}"


def choose_ema(state: Mapping[str, Any], ema: bool | None) -> dict[str, Any]:
    """Choose between the weights that were trained and their moving average.

    Composer's ``EMA`` swaps the two when a checkpoint is saved: which of them stands where the
    model is said to be is written beside them.

    Args:
        state: The state of a Composer checkpoint.
        ema: True for the average, False for the weights that were trained, None for whichever
            stands in the model's place.

    Raises:
        ValueError: If the checkpoint has no average, or what stands beside the model does not
            have all of its weights.
    """
    weights = dict(state["model"])
    algorithm = dict(algorithms(state)).get("EMA")
    if algorithm is None:
        if ema:
            trained = ", ".join(plain(name) for name, _ in algorithms(state)) or "none"
            raise ValueError(
                "ema=True was asked for, and it holds no EMA weights (algorithms in it: "
                f"{trained}); full checkpoints of runs with Composer's EMA hold them"
            )
        return weights
    if ema and algorithm.get("ema_started") is False:
        raise ValueError(
            "ema=True was asked for, and its EMA had not begun when it was saved; take a later "
            "checkpoint, or leave ema out"
        )
    if ema is None or ema == bool(algorithm.get("ema_weights_active")):
        return weights
    return _exchange(weights, algorithm.get("ema_model"), ema)


def _exchange(weights: dict[str, Tensor], beside: object, ema: bool) -> dict[str, Tensor]:
    """Put what EMA keeps beside the model in the model's place, every weight of it.

    A run with DDP keeps it under the names of the wrapped model, and tied weights once.
    """
    held: dict[str, Tensor] = {}
    for part in ("named_parameters_dict", "named_buffers_dict"):
        found = beside.get(part) if isinstance(beside, Mapping) else None
        if found and not holds_weights(found):
            raise ValueError("its EMA weights are no tensors; leave ema out")
        held |= found or {}
    specs, others = specs_of(weights), specs_of(held)
    ties = _ties(weights)
    match = match_keys(specs, others, ties)
    lacking = [*match.missing, *match.mismatched]
    if lacking or not held:
        raise ValueError(
            f"ema={ema} was asked for, and what its EMA keeps beside the model fits "
            f"{len(weights) - len(lacking)} of the model's {len(weights)} weights (not "
            f"{', '.join(map(plain, lacking[:4]))}); ema=None takes what stands in the model's "
            "place"
        )
    chosen = {key: held[other] for key, other in match.pairs.items()}
    for names in ties:
        tied = next(chosen[key] for key in weights if key in names and key in chosen)
        chosen |= dict.fromkeys(names - chosen.keys(), tied)
    return {key: chosen[key] for key in weights}


def _ties(weights: Mapping[str, Tensor]) -> list[frozenset[str]]:
    """The names that share their values in the file, as ``torch.save`` keeps tied weights."""
    names: defaultdict[object, set[str]] = defaultdict(set)
    for key, tensor in weights.items():
        if tensor.numel():
            names[tensor.data_ptr(), tensor.shape, tensor.stride()].add(key)
    return [frozenset(keys) for keys in names.values() if len(keys) > 1]


def algorithms(stored: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The algorithms that a Composer checkpoint was trained with, each with its state."""
    found = stored.get("algorithms")
    if not isinstance(found, Mapping | list | tuple):
        return []
    pairs = found.items() if isinstance(found, Mapping) else found
    return [
        (plain(pair[0]), pair[1] if isinstance(pair[1], dict) else {})
        for pair in pairs
        if isinstance(pair, tuple | list) and len(pair) == 2
    ]
