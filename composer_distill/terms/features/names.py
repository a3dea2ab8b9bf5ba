"""Layers by name: as the user's own model shows them, whatever wraps it; globs and pairs."""

import difflib
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.parallel import DistributedDataParallel

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP1 and activation checkpointing put between a module and its name."""

_SHOWN = 4


def plain_name(name: str) -> str:
    """Return a module's name without what wrappers put into it.

    Example:
        >>> plain_name("_orig_mod.layer1._fsdp_wrapped_module.0")
        'layer1.0'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without the wrappers around the whole of it."""
    while True:
        inner = next((model._modules[w] for w in WRAPPERS if model._modules.get(w)), None)
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def roots(model: nn.Module) -> list[nn.Module]:
    """Return the models whose names a user may mean: the whole, and the one that it is made of.

    A ``ComposerModel`` holds the user's own as ``module`` or ``model``.
    """
    whole = unwrapped(model)
    inner = [getattr(whole, attribute, None) for attribute in ("module", "model")]
    return [whole, *(unwrapped(found) for found in inner if isinstance(found, nn.Module))]


def is_glob(name: str) -> bool:
    """Return whether a name is a pattern."""
    return any(sign in name for sign in "*?[")


def find(model: nn.Module, pattern: str, owner: str) -> list[tuple[str, nn.Module]]:
    """Return the layers of that name, or that a glob matches, in the order of the model.

    Args:
        model: The model, wrapped or not.
        pattern: A name, or a glob, whose ``*`` stands for one part between dots.
        owner: Whose layers they are, for errors.

    Raises:
        ValueError: If there are none; it names the nearest.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.ReLU(), nn.ReLU()))
        >>> [name for name, _ in find(model, "1.*", "the student")]
        ['1.0', '1.1']
    """
    wanted = plain_name(pattern)
    names: list[str] = []
    for root in roots(model):
        table = dict(_layers(root))
        found = [(name, table[name]) for name in table if _matches(name, wanted)]
        if found:
            return found
        names += table
    near = difflib.get_close_matches(wanted, names, n=_SHOWN, cutoff=0.4) or names[:_SHOWN]
    raise ValueError(
        f"{owner} has no layer {pattern!r}. Layers with near names: "
        f"{', '.join(map(repr, near)) or 'none'}. Names are those of model.named_modules()."
    )


def _layers(root: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield each layer under its plain name: of several wrapped ones the outermost."""
    seen = set[str]()
    for name, module in root.named_modules(remove_duplicate=False):
        plain = plain_name(name)
        if plain and plain not in seen:
            seen.add(plain)
            yield plain, module


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def pair(
    student: Sequence[str], teacher: Sequence[str], *, by_glob: bool = False
) -> list[tuple[str, str]]:
    """Return pairs of layers.

    Args:
        student: The student's layers.
        teacher: The teacher's: as many, or by a glob k times as many.
        by_glob: Whether the teacher's come from one glob, of which every k-th may be taken.

    Raises:
        ValueError: If their numbers do not fit.

    Example:
        >>> pair(["a.0", "a.1"], ["b.0", "b.1", "b.2", "b.3"], by_glob=True)
        [('a.0', 'b.1'), ('a.1', 'b.3')]
    """
    step, rest = divmod(len(teacher), len(student))
    if rest or step < 1 or (step > 1 and not by_glob):
        raise ValueError(
            f"student and teacher must name as many layers, got {len(student)} "
            f"({_few(student)}) and {len(teacher)} ({_few(teacher)}). Give both as lists of one "
            "length, or the teacher as a glob with a multiple of the student's."
        )
    return list(zip(student, teacher[step - 1 :: step], strict=True))


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
