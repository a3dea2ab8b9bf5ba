"""What losses, schedules, masks and types are called in a configuration: by their public names."""

import inspect
import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import cache
from typing import Any

import composer.optim
import torch

import composer_distill.losses
from composer_distill import __all__ as public_names
from composer_distill.losses import DistillationLoss, FeatureLoss
from composer_distill.terms import judging, positions


def snake_case(name: str) -> str:
    """Return a class's name as a configuration writes it.

    Example:
        >>> snake_case("CosineAnnealingWithWarmup"), snake_case("LogitMSE")
        ('cosine_annealing_with_warmup', 'logit_mse')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@cache
def losses() -> Mapping[str, Any]:
    """Return every public loss by the name of its function, else by its own in snake case.

    Example:
        >>> losses()["top_k_kl"]
        <class 'composer_distill.losses.top_k_kl.TopKKL'>
    """
    public = {
        name: getattr(composer_distill.losses, name) for name in composer_distill.losses.__all__
    }
    spelt = {name.replace("_", ""): name for name in public if name.islower()}
    classes = {name: value for name, value in public.items() if inspect.isclass(value)}
    return {
        spelt.get(name.lower(), snake_case(name)): value
        for name, value in classes.items()
        if value not in (DistillationLoss, FeatureLoss)
    }


@cache
def schedules() -> Mapping[str, type]:
    """Return Composer's schedulers by their names in snake case, and LLM Foundry's for the same.

    Example:
        >>> schedules()["linear"].__name__
        'LinearScheduler'
    """
    found = {
        snake_case(name.removesuffix("Scheduler")): getattr(composer.optim, name)
        for name in composer.optim.__all__
        if name.endswith("Scheduler") and name != "ComposerScheduler"
    }
    return {
        **found,
        "cosine_with_warmup": found["cosine_annealing_with_warmup"],
        "linear_decay_with_warmup": found["linear_with_warmup"],
    }


@cache
def masks() -> Mapping[str, Any]:
    """Return every public name that says which positions count."""
    return {
        name: getattr(room, name)
        for room in (positions, judging)
        for name in public_names
        if name.islower() and hasattr(room, name)
    }


@cache
def dtypes() -> Mapping[str, torch.dtype]:
    """Return torch's floating-point types by their names, and LLM Foundry's two short ones."""
    found = {name: getattr(torch, name) for name in dir(torch)}
    return {
        **{
            name: value
            for name, value in found.items()
            if isinstance(value, torch.dtype) and value.is_floating_point
        },
        "bf16": torch.bfloat16,
        "f16": torch.float16,
    }


def unknown(word: object, words: Iterable[str]) -> str:
    """Return what to say of a word that is none of ``words``: the nearest of them, else all.

    Example:
        >>> unknown("temprature", ["dim", "temperature"])
        "Did you mean 'temperature'?"
    """
    known = sorted(words)
    near = get_close_matches(str(word).lower(), known, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Choose one of {', '.join(known)}."
