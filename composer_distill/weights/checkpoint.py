"""Weights from files, read without executing anything from them."""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from composer_distill.weights.contents import Contents, Spec, spec_of
from composer_distill.weights.errors import clean_errors, named_errors, plain
from composer_distill.weights.files import algorithms, open_file
from composer_distill.weights.folders import open_folder
from composer_distill.weights.keys import Match, describe, likely_cause, match_keys
from composer_distill.weights.memory import materialize, release
from composer_distill.weights.sources import resolve_path
from composer_distill.weights.uris import Remote, parse_remote
from composer_distill.weights.watch import check_unchanged, guarded, seen

log = logging.getLogger(__name__)


def load_weights(
    model: nn.Module,
    source: str | Path,
    *,
    name: str = "teacher",
    strict: bool = True,
    ema: bool | None = None,
) -> None:
    """Load the weights that a checkpoint holds into a model, tensor by tensor.

    Keys are matched exactly; failing that, with one of the prefixes ``module.``, ``model.`` and
    ``_orig_mod.`` removed or added, which the log says. A model on the meta device gets its
    memory here, once the file is known to fit.

    Args:
        model: The model, or the bare module that a ComposerModel wraps.
        source: Where the checkpoint is: a path, or the URI of an object store.
        name: What errors and logs call the model.
        strict: Whether every weight of both sides must find its place, in shape and kind. Without
            it what fits is loaded, and what does not is logged.
        ema: From a checkpoint that was trained with Composer's ``EMA``: True for the moving
            average, False for the weights that were trained, None for whichever the file has in
            its model's place.

    Raises:
        FileNotFoundError: If there is nothing at ``source``.
        ValueError: If it is no checkpoint, is damaged, asks for more than data, or does not fit.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save(nn.Linear(2, 1).state_dict(), path)
        >>> load_weights(nn.Linear(2, 1), path, name="the expert")
        >>> load_weights(nn.Linear(3, 1), path, name="the expert")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: the expert: ... does not fit the model: 1 of the model's 2 weights are in it...
    """
    with named_errors(name, source), open_source(source, ema=ema) as contents:
        match = _fit(model, contents, strict=strict)
        unfilled = _meta_left(model, match)
        if unfilled:
            raise ValueError(
                f"it holds nothing for {_first(unfilled)}, which are on the meta device; "
                "build the model on the CPU"
            )
        materialize(model)
        if _loads_itself(model):
            _hand_over(model, match, contents, strict=strict)
        else:
            _copy(model, match, contents)
        _reset(model, match)
        _say(name, contents, match)
        _compare_made(name, model, contents, match)


@contextmanager
def open_source(source: str | Path, *, ema: bool | None = None) -> Iterator[Contents]:
    """Open any source for reading; see ``load_weights``."""
    with clean_errors():
        remote = parse_remote(source)
        path = resolve_path(source) if remote is None else _fetch(remote)
        before = seen(path)
        with (open_folder if path.is_dir() else open_file)(path, ema=ema) as contents:
            yield replace(contents, read=guarded(contents.read, before))
            check_unchanged(before, mapped=contents.mapped)


def _fetch(remote: Remote) -> Path:
    # Only here, since it needs Composer
    from composer_distill.weights.remote import fetch

    return fetch(remote)


def _fit(model: nn.Module, contents: Contents, *, strict: bool) -> Match:
    state = _state(model)
    _check_dense(state)
    specs = {key: spec_of(tensor) for key, tensor in state.items()}
    made = {key: spec_of(buffer) for key, buffer in _unsaved(model).items()}
    match = match_keys(specs, contents.specs, _aliases(state), made)
    if match.complete or (match.pairs and (not strict or _loads_itself(model))):
        return match
    raise ValueError(_misfit(match, specs, contents))


def _check_dense(state: dict[str, Tensor]) -> None:
    """Refuse a model of which no file of plain tensors can fill a weight."""
    for key, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            raise ValueError(
                f"the model's {plain(key)} is a {'quantized' if tensor.is_quantized else kind} "
                "tensor, which is not filled from a file; load the weights yourself, and pass "
                "Teacher(model) without a checkpoint"
            )


def _misfit(match: Match, specs: dict[str, Spec], contents: Contents) -> str:
    trained_with = [name for name, _ in algorithms(contents.stored)]
    cause = likely_cause(match, specs, contents.specs, trained_with)
    listed = describe(match, specs, contents.specs)
    return f"this {contents.kind} does not fit the model: {listed}\nLikely cause: {cause}."


def _state(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights themselves, tied ones under each of their names."""
    state = model.state_dict(keep_vars=True)
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that the model makes itself, and leaves out of its state."""
    return {
        f"{name}.{key}" if name else key: buffer
        for name, module in model.named_modules(remove_duplicate=False)
        for key, buffer in module.named_buffers(recurse=False)
        if key in module._non_persistent_buffers_set
    }


def _aliases(state: dict[str, Tensor]) -> list[frozenset[str]]:
    names: defaultdict[int, set[str]] = defaultdict(set)
    for key, tensor in state.items():
        names[id(tensor)].add(key)
    return [frozenset(keys) for keys in names.values() if len(keys) > 1]


def _meta_left(model: nn.Module, match: Match) -> list[str]:
    ours = {*match.pairs, *match.counters}
    filled = {id(tensor) for key, tensor in _state(model).items() if key in ours}
    held = (*model.named_parameters(), *model.named_buffers())
    return [name for name, tensor in held if tensor.is_meta and id(tensor) not in filled]


def _copy(model: nn.Module, match: Match, contents: Contents) -> None:
    state = _state(model)
    with torch.no_grad():
        for key, file_key in match.pairs.items():
            weight = contents.read(file_key)
            state[key].copy_(weight)
            _check_whole_numbers(state[key], weight, key)
            if contents.mapped:
                release(weight)
            del weight  # before the next one is read


def _check_whole_numbers(ours: Tensor, weight: Tensor, key: str) -> None:
    """Refuse integers that a smaller type has wrapped around."""
    real = any(t.is_floating_point() or t.is_complex() for t in (ours, weight))
    if real or ours.dtype in (weight.dtype, torch.bool):
        return
    if not torch.equal(ours.cpu().to(weight.dtype), weight):
        raise ValueError(
            f"its {plain(key)} ({weight.dtype}) holds numbers that the model's {ours.dtype} has no "
            "room for; build the model with the file's type"
        )


def _reset(model: nn.Module, match: Match) -> None:
    """Set the counters that an old file lacks to 0, as torch does; only training reads them."""
    state = _state(model)
    for key in match.counters:
        state[key].zero_()


def _loads_itself(model: nn.Module) -> bool:
    """Whether a module that has weights has its own way to load them, which a copy would skip."""
    keys = model.state_dict(keep_vars=True).keys()
    return any(
        _customised(module) and any(key.startswith(f"{name}." if name else "") for key in keys)
        for name, module in model.named_modules()
    )


def _customised(module: nn.Module) -> bool:
    loader = type(module)._load_from_state_dict
    return bool(
        not loader.__module__.startswith("torch.nn.modules.")
        or type(module).set_extra_state is not nn.Module.set_extra_state
        or type(module).load_state_dict is not nn.Module.load_state_dict
        or module._load_state_dict_pre_hooks
        or module._load_state_dict_post_hooks
    )


def _hand_over(model: nn.Module, match: Match, contents: Contents, *, strict: bool) -> None:
    """Let the model load itself from copies, of which it may keep what it likes.

    A view of the mapped file would change with the file.
    """
    weights = OrderedDict((new, _own(contents, old)) for new, old in match.renamed.items())
    try:
        model.load_state_dict(weights, strict=strict)
    except Exception as error:  # Of the module's own code.
        raise ValueError(f"the model refused it: {error}") from error


def _own(contents: Contents, key: str) -> Tensor:
    weight = contents.read(key)
    return weight.clone() if contents.mapped else weight


def _first(keys: Iterable[str]) -> str:
    return ", ".join(map(plain, islice(keys, 4)))


def _say(name: str, contents: Contents, match: Match) -> None:
    changed = f"; {match.change}" if match.change else ""
    log.info("%s: %d weights from %s%s", name, len(match.pairs), contents.path, changed)
    left = {"missing": match.missing, "unexpected": match.unexpected, "other": match.mismatched}
    for what, keys in left.items():
        if keys:
            log.warning("%s: %d weights %s: %s", name, len(keys), what, _first(keys))


def _compare_made(name: str, model: nn.Module, contents: Contents, match: Match) -> None:
    """Say where the file's copy of a buffer is another than the one that the model made itself."""
    own = _unsaved(model)
    pairs = ((key, own[key], contents.read(old)) for key, old in match.made.items() if key in own)
    differing = [
        key
        for key, ours, theirs in pairs  # written in half precision perhaps
        if not torch.allclose(ours.cpu().double(), theirs.double(), rtol=1e-2, equal_nan=True)
    ]
    if differing:
        log.warning(
            "%s: the file holds other values for %d buffers that the model makes itself, and keeps "
            "as it made them: %s",
            name, len(differing), _first(differing),
        )  # fmt: skip
