"""A student with some of its teacher's channels, neurons and heads: those that matter most."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from composer_distill.students.activations import Importance, measured
from composer_distill.students.building import empty
from composer_distill.students.families import Family, Role, family_of, roles_of


@dataclass(frozen=True)
class Widths:
    """How many of each stay; None for all.

    Args:
        hidden: Channels between the layers.
        intermediate: Neurons of each feed-forward network.
        heads: Attention heads of each layer.
    """

    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None

    def __bool__(self) -> bool:
        return any(value is not None for value in (self.hidden, self.intermediate, self.heads))


Kept = Mapping[tuple[int | None, Role], Tensor]
"""Which entries of an axis stay: by the layer, None for all layers, and by what the axis is."""


def narrowed(teacher: Any, widths: Widths, batches: Iterable[Mapping[str, Any]] | None) -> Any:
    """Return a student of less width, filled with what matters most of the teacher's weights.

    Args:
        teacher: A ``PreTrainedModel`` that is like Llama or like BERT; it stays as it is.
        widths: How many of each stay.
        batches: Inputs on which activations are measured.

    Raises:
        TypeError: If a width is no whole number.
        ValueError: If the architecture is another one, a width does not fit, or without batches.
    """
    family = family_of(teacher)
    config = _narrow_config(teacher, family, widths)
    if batches is None:
        raise ValueError(
            "hidden, intermediate and heads need batches, on which is measured what matters; got "
            "batches=None."
        )
    kept = _kept(measured(teacher, family, batches), config, family, teacher.config)
    student = empty(teacher, config)
    copies: dict[int, Tensor] = {}  # what is tied is copied once
    source, weights = teacher.state_dict(), {}
    for name, own in student.state_dict().items():
        found = copies.get(source[name].data_ptr())
        if found is None or found.shape != own.shape:
            found = _sliced(source[name], roles_of(name, family), kept)
        weights[name] = copies[source[name].data_ptr()] = found
    student.load_state_dict(weights, assign=True)
    student.tie_weights()
    student.to(teacher.device)  # buffers that are no weights
    student.generation_config = copy.deepcopy(getattr(teacher, "generation_config", None))
    return student.eval()


def _sliced(weight: Tensor, roles: tuple[int | None, Sequence[Role]], kept: Kept) -> Tensor:
    """Return a copy of the entries of a weight that stay."""
    layer, axes = roles
    weight = weight.detach().clone()
    for axis, role in enumerate(axes):
        indices = kept.get((layer, role), kept.get((None, role)))
        if indices is not None:
            weight = weight.index_select(axis, indices.to(weight.device))
    return weight


def _kept(found: Importance, config: Any, family: Family, former: Any) -> Kept:
    """Return which entries of each kind of axis stay, in their order."""
    size = family.head_size(former)
    groups = family.key_value_heads(former)
    per_group = former.num_attention_heads // groups
    kept: dict[tuple[int | None, Role], Tensor] = {
        (None, "hidden"): _best(found.hidden, config.hidden_size)
    }
    for layer, (neurons, heads) in enumerate(zip(found.intermediate, found.heads, strict=True)):
        kept[layer, "intermediate"] = _best(neurons, config.intermediate_size)
        # heads that share keys and values stay or go together
        of_group = heads.reshape(groups, per_group).square().sum(1)
        best = _best(of_group, config.num_attention_heads // per_group)
        kept[layer, "key"] = _spread(best, size)
        kept[layer, "query"] = _spread(_spread(best, per_group), size)
    return kept


def _best(importance: Tensor, count: int) -> Tensor:
    order = importance.argsort(descending=True, stable=True)
    return order[:count].sort().values


def _spread(indices: Tensor, size: int) -> Tensor:
    """Return the entries of an axis on which each index takes ``size`` places."""
    return (indices[:, None] * size + torch.arange(size)).flatten()


def _narrow_config(teacher: Any, family: Family, widths: Widths) -> Any:
    """Return the student's configuration, its widths checked."""
    former, config = teacher.config, copy.deepcopy(teacher.config)
    size, groups = family.head_size(former), family.key_value_heads(former)
    per_group = former.num_attention_heads // groups
    config.hidden_size = _checked("hidden", widths.hidden, former.hidden_size)
    config.intermediate_size = _checked(
        "intermediate", widths.intermediate, former.intermediate_size
    )
    heads = _checked("heads", widths.heads, former.num_attention_heads)
    if heads % per_group:
        raise ValueError(
            f"heads must be a multiple of {per_group}, since so many share their keys and values, "
            f"got {heads}."
        )
    config.num_attention_heads = heads
    if family.has_head_size:
        config.head_dim, config.num_key_value_heads = size, heads // per_group
    elif config.hidden_size != heads * size:
        raise ValueError(
            f"hidden and heads: a {type(teacher).__name__} has hidden / heads channels a head, "
            f"which is {size} and must stay, but hidden={config.hidden_size} and heads={heads} "
            f"were asked for. Pass hidden={heads * size} with heads={heads}."
        )
    return config


def _checked(name: str, count: Any, there: int) -> int:
    if count is None:
        return there
    if not isinstance(count, Integral) or isinstance(count, bool):
        raise TypeError(f"{name} must be a whole number, got {type(count).__name__}.")
    if not 1 <= int(count) <= there:
        raise ValueError(f"{name} must lie in [1, {there}], what the teacher has, got {count}.")
    return int(count)
