"""What ``Distillation`` refuses at construction, each with a remedy."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

from torch import nn
from torch.nn import functional as F

from composer_distill.losses import DistillationLoss
from composer_distill.schedule import check_weight
from composer_distill.terms.features.term import FeatureTerm


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Refuse a word that is none of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_choices(on_nonfinite: Any, teacher_sharding: Any) -> None:
    """Refuse words that ``Distillation`` does not know."""
    check_choice(on_nonfinite, "on_nonfinite", ("raise", "skip"))
    check_choice(teacher_sharding, "teacher_sharding", ("auto", "replicated", "sharded"))


def check_feature_terms(terms: Any, on_nonfinite: str) -> tuple[FeatureTerm, ...]:
    """Return ``feature_terms`` as a tuple, or refuse them."""
    found = tuple(terms) if isinstance(terms, Iterable) else (terms,)
    for index, term in enumerate(found):
        if not isinstance(term, FeatureTerm):
            raise TypeError(
                f"feature_terms[{index}] must be a FeatureTerm, got {type(term).__name__}. "
                "Pass FeatureTerm(student=..., teacher=..., loss=...)."
            )
    if found and on_nonfinite == "skip":
        raise ValueError(
            "on_nonfinite='skip' leaves out a teacher's logits and not its features. Use "
            "on_nonfinite='raise' with feature_terms."
        )
    return found


def check_loss(kd_loss_fn: Any, combine: str, *, needed: bool = True) -> None:
    """Refuse at construction what can never be a distillation loss; None where one is needed."""
    if kd_loss_fn is None and not needed:
        return
    if not callable(kd_loss_fn):
        raise TypeError(
            f"kd_loss_fn must be callable as (student, teacher), got {type(kd_loss_fn).__name__}. "
            "Pass an instance such as KLDivergence()."
        )
    if isinstance(kd_loss_fn, type):
        raise TypeError(
            f"kd_loss_fn must be an instance, got the class {kd_loss_fn.__name__}. "
            f"Pass {kd_loss_fn.__name__}()."
        )
    if isinstance(kd_loss_fn, nn.KLDivLoss) or kd_loss_fn is F.kl_div:
        raise ValueError(
            "kd_loss_fn receives logits, but torch's KL divergence needs log-probabilities of the "
            "student and probabilities of the teacher. Use composer_distill.KLDivergence."
        )
    _check_reduction(kd_loss_fn)
    check_choice(combine, "combine", ("logits", "probabilities"))
    if combine == "probabilities" and not hasattr(kd_loss_fn, "temperature"):
        raise ValueError(
            "combine='probabilities' mixes at the temperature of the loss, but kd_loss_fn has no "
            "attribute 'temperature'. Use KLDivergence(temperature=...) or combine='logits'."
        )


def _check_reduction(kd_loss_fn: Any) -> None:
    parts = kd_loss_fn.modules() if isinstance(kd_loss_fn, nn.Module) else [kd_loss_fn]
    for part in parts:
        reduction = getattr(part, "reduction", "mean")
        if reduction == "sum" or (reduction == "none" and isinstance(part, DistillationLoss)):
            raise ValueError(
                f"kd_loss_fn has reduction='{reduction}', whose value would depend on the "
                "microbatch size or the number of classes. Use reduction='mean' and a larger "
                "kd_loss_weight."
            )


def check_seed(seed: Any) -> int:
    """Return the seed of the draw as an integer, or refuse it."""
    if not isinstance(seed, Integral) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, got {seed!r}. Pass one such as 0.")
    return int(seed)


def check_weights(kd_loss_weight: Any, org_loss_weight: Any, *, alone: bool) -> None:
    """Refuse weights out of their range, and where no other term trains, two that are 0."""
    check_weight(kd_loss_weight, "kd_loss_weight")
    check_weight(org_loss_weight, "org_loss_weight")
    weights = (kd_loss_weight, org_loss_weight)
    if alone and all(isinstance(weight, Real) and weight == 0 for weight in weights):
        raise ValueError(
            "kd_loss_weight and org_loss_weight are both 0, so nothing would be trained. "
            "Give one of them a positive weight."
        )


def check_sample_size(n_sampled: Any, n_teachers: int) -> int | None:
    """Refuse a number of teachers that can't be drawn."""
    if n_sampled is None:
        return None
    if not isinstance(n_sampled, Integral) or isinstance(n_sampled, bool):
        raise TypeError(
            "n_teachers_to_sample must be an integer or None, "
            f"got {type(n_sampled).__name__}. None lets all teachers answer."
        )
    if not 1 <= int(n_sampled) <= n_teachers:
        raise ValueError(
            f"n_teachers_to_sample must lie in [1, {n_teachers}], the number of teachers, "
            f"got {n_sampled}. None lets all teachers answer."
        )
    return int(n_sampled)


def describe_call(name: str, **arguments: Any) -> str:
    """Return a call as it is written, without memory addresses.

    Example:
        >>> describe_call("Distillation", seed=3)
        'Distillation(seed=3)'
    """
    return f"{name}({', '.join(f'{k}={_describe(v)}' for k, v in arguments.items())})"


def _describe(value: Any) -> str:
    text = repr(value)
    if " at 0x" not in text:
        return text
    return getattr(value, "__qualname__", type(value).__name__)
