"""Which weight of a file goes where in a model, and what to say when they do not fit."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from composer_distill.weights.contents import Spec
from composer_distill.weights.errors import plain

PREFIXES = ("module.", "model.", "_orig_mod.")
SHOWN = 4
_COUNTER = "num_batches_tracked"

# Composer's algorithms that change a model's modules before training, with what they leave behind.
SURGERY = {
    "BlurPool": "blur_filter",
    "SqueezeExcite": ".se.",
    "GhostBatchNorm": ".batchnorm.",
    "Factorize": "module1.",
    "Alibi": "",
    "GatedLinearUnits": ".gated_layer",
    "GyroDropout": "",
    "StochasticDepth": "",
    "LowPrecisionLayerNorm": "",
    "LowPrecisionGroupNorm": "",
    "NoOpModel": "",
}


@dataclass(frozen=True)
class Match:
    """How a file's weights meet a model's.

    Args:
        pairs: From each of the model's keys to the file's key that fills it.
        missing: The model's keys that the file has nothing for.
        unexpected: The file's keys that the model has no place for.
        mismatched: The model's keys whose tensor in the file has another shape, or another kind,
            with the file's keys.
        renamed: From each of the file's keys, as the model would spell it, to the file's own.
        counters: The model's counters of batch norm that a file from before torch 0.4.1 lacks.
        made: The model's buffers that it makes itself and does not save, with the keys of a file
            that holds them all the same. The model keeps its own.
        change: What was done to the file's keys, in words; empty when nothing was.
    """

    pairs: Mapping[str, str]
    missing: Sequence[str]
    unexpected: Sequence[str]
    mismatched: Mapping[str, str]
    renamed: Mapping[str, str]
    counters: Sequence[str] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    change: str = ""

    @property
    def complete(self) -> bool:
        """Whether every weight of both sides found its place."""
        return not (self.missing or self.unexpected or self.mismatched)


def match_keys(
    model: Mapping[str, Spec],
    file: Mapping[str, Spec],
    aliases: Iterable[frozenset[str]] = (),
    made: Mapping[str, Spec] | None = None,
) -> Match:
    """Match names exactly; failing that, with one known prefix removed or added.

    Args:
        model: The model's weights.
        file: The file's weights.
        aliases: Sets of the model's keys that name one and the same tensor: one of them is enough.
        made: Buffers that the model makes itself and does not save.

    Example:
        >>> import torch
        >>> spec = Spec((2,), torch.float32)
        >>> match_keys({"w": spec}, {"module.w": spec}).pairs
        {'w': 'module.w'}
    """
    sets = tuple(aliases)
    renamings = [*_renamings(), *_wrapper(file)]
    candidates = [
        _match(model, file, sets, made or {}, rename, change) for rename, change in renamings
    ]
    found = [match for match in candidates if match is not None]
    for match in found:
        if match.complete:
            return match
    return max(found, key=lambda match: (len(match.pairs), len(match.mismatched)))


def _renamings() -> list[tuple[Callable[[str], str], str]]:
    removals = [
        # torch.compile's prefix may stand inside a name, where it can mean nothing else.
        (lambda key, p=prefix: key.replace(p, "") if p == "_orig_mod." else key.removeprefix(p),
         f"the prefix {prefix!r} was removed from the file's keys")
        for prefix in PREFIXES
    ]  # fmt: skip
    additions = [
        (lambda key, p=prefix: p + key, f"the prefix {prefix!r} was added to the file's keys")
        for prefix in PREFIXES
    ]
    return [(lambda key: key, ""), *removals, *additions]


def _wrapper(file: Mapping[str, Spec]) -> list[tuple[Callable[[str], str], str]]:
    """Return how to take off the attribute that a wrapper holds its one model in, if it has one."""
    heads = {key.partition(".")[0] + "." for key in file}
    if len(heads) != 1 or heads & set(PREFIXES):
        return []
    (head,) = heads
    what = f"the prefix {plain(head)!r} was removed from the file's keys"
    return [(lambda key: key.removeprefix(head), what)]


def _match(
    model: Mapping[str, Spec],
    file: Mapping[str, Spec],
    aliases: Sequence[frozenset[str]],
    made: Mapping[str, Spec],
    rename: Callable[[str], str],
    change: str,
) -> Match | None:
    renamed = {rename(key): key for key in file}
    if len(renamed) < len(file):  # two keys became one
        return None
    shared = [key for key in model if key in renamed]
    mismatched = {key: renamed[key] for key in shared if _differ(model[key], file[renamed[key]])}
    pairs = {key: renamed[key] for key in shared if key not in mismatched}
    filled = {key for names in aliases if names & pairs.keys() for key in names}
    counters = _counters(model, renamed)
    filled.update(counters)
    remade = {new: key for new, key in renamed.items() if _is_made(new, file[key], made)}
    return Match(
        pairs=pairs,
        missing=[key for key in model if key not in renamed and key not in filled],
        unexpected=[k for new, k in renamed.items() if new not in model and new not in remade],
        mismatched=mismatched,
        renamed={new: key for new, key in renamed.items() if new not in remade},
        counters=counters,
        made=remade,
        change=change,
    )


def _counters(model: Mapping[str, Spec], renamed: Mapping[str, str]) -> list[str]:
    """Batch norm's counters, where the file has statistics and, being older, not one counter."""
    if any(key.endswith(_COUNTER) for key in renamed):
        return []
    pairs = [(key, key.removesuffix(_COUNTER) + "running_mean") for key in model]
    return [key for key, mean in pairs if key.endswith(_COUNTER) and mean in renamed]


def _is_made(key: str, spec: Spec, made: Mapping[str, Spec]) -> bool:
    """Whether a file's weight is one that the model makes itself.

    The attention of GPT-2 and its kin once saved a mask and, beside it, the number filled in.
    """
    if key.endswith(".masked_bias") and not spec.shape:
        return key.removesuffix("masked_bias") + "bias" in made
    return key in made and made[key].shape == spec.shape


def _differ(one: Spec, other: Spec) -> bool:
    kinds = [(spec.dtype.is_floating_point, spec.dtype.is_complex) for spec in (one, other)]
    return one.shape != other.shape or kinds[0] != kinds[1]


def describe(match: Match, model: Mapping[str, Spec], file: Mapping[str, Spec]) -> str:
    """Count and list what does not fit, the first few of each.

    Args:
        match: How the two sides met.
        model: The model's weights.
        file: The file's weights.
    """
    counts = (
        f"{len(match.pairs)} of the model's {len(model)} weights are in it, "
        f"{len(match.missing)} are missing, {len(match.mismatched)} have another shape or type, "
        f"and {len(match.unexpected)} of the file's {len(file)} are unexpected"
    )
    differing = [
        f"{plain(key)} (model {_show(model[key], file[old])}, file {_show(file[old], model[key])})"
        for key, old in match.mismatched.items()
    ]
    rows = [
        _row("missing from the file", [_entry(key, model) for key in match.missing]),
        _row("unexpected in the file", [_entry(key, file) for key in match.unexpected]),
        _row("different", differing),
        f"\n  ({match.change})" if match.change else "",
    ]
    return counts + "".join(rows)


def _entry(key: str, specs: Mapping[str, Spec]) -> str:
    return f"{plain(key)} {specs[key].shape}"


def _show(spec: Spec, other: Spec) -> str:
    return str(spec.shape) if spec.shape != other.shape else str(spec.dtype)


def _row(title: str, items: Sequence[str]) -> str:
    more = f", and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"\n  {title}: {', '.join(items[:SHOWN])}{more}" if items else ""


def likely_cause(
    match: Match, model: Mapping[str, Spec], file: Mapping[str, Spec], trained_with: Sequence[str]
) -> str:
    """Guess why a file does not fit, and say what to do.

    Args:
        match: How the two sides met.
        model: The model's weights.
        file: The file's weights.
        trained_with: The names of Composer's algorithms that the checkpoint was trained with.
    """
    surgery = [name for name in SURGERY if _traced(name, match, trained_with)]
    if surgery:
        return (
            f"the file's model was changed by {' and '.join(surgery)} before it was trained; apply "
            "the same to this model first, with composer.functional or the algorithm itself"
        )
    if any(".lora_" in key for key in match.unexpected):
        return (
            "a PEFT adapter, which changes another model; merge the two with peft's "
            "merge_and_unload(), and save the result"
        )
    if _only_heads(match, model, file):
        key, old = next(iter(match.mismatched.items()))
        ours, theirs = model[key].shape, file[old].shape
        return (
            f"another head: {plain(key)} is {theirs} in the file and {ours} in the model; "
            "build the model with the file's number of outputs, and map them to the student's with "
            "output_fn"
        )
    prefix = _foreign_prefix(match, file)
    if prefix:
        return (
            f"all keys of the file begin with {plain(prefix)!r}, as if the model were a part of a "
            "larger one; save that part's state_dict(), or load into the larger model"
        )
    return (
        "another architecture, or another depth, width or version of it; build the model that the "
        "file was saved from"
    )


def _traced(name: str, match: Match, trained_with: Sequence[str]) -> bool:
    trace = SURGERY[name]
    left = [key for key in (*match.unexpected, *match.missing) if trace and trace in f".{key}"]
    return name in trained_with or bool(left)


def _only_heads(match: Match, model: Mapping[str, Spec], file: Mapping[str, Spec]) -> bool:
    if match.missing or match.unexpected or not match.pairs:
        return False
    modules = {key.rpartition(".")[0] for key in match.mismatched}
    pairs = [(model[key].shape, file[old].shape) for key, old in match.mismatched.items()]
    return len(modules) <= 2 and all(ours[:1] != theirs[:1] for ours, theirs in pairs)


def _foreign_prefix(match: Match, file: Mapping[str, Spec]) -> str:
    heads = {key.partition(".")[0] for key in file if "." in key}
    alone = len(heads) == 1 and not match.pairs and all("." in key for key in file)
    prefix = f"{heads.pop()}." if alone else ""
    return "" if prefix in PREFIXES else prefix
