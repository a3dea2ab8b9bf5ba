"""A student with some of its teacher's layers."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from composer_distill.students.building import bare, build_like, checked_batches
from composer_distill.students.importance import layer_importance
from composer_distill.students.layers import (
    FIRST,
    HIDDEN_STATES,
    INDICES,
    PER_LAYER,
    Stack,
    matching,
    stacks_of,
)
from composer_distill.students.width import Widths, narrowed

if TYPE_CHECKING:
    from transformers.modeling_utils import PreTrainedModel

Layers = int | Sequence[int] | Literal["importance"]


def student_from_teacher(
    model: Any,
    layers: Layers | Mapping[str, Layers] | None = None,
    *,
    n_layers: int | None = None,
    hidden: int | None = None,
    intermediate: int | None = None,
    heads: int | None = None,
    batches: Iterable[Mapping[str, Any]] | None = None,
    stacks: Mapping[str, str] | None = None,
) -> "PreTrainedModel":
    """Make a student of some of a Hugging Face teacher's layers, channels, neurons and heads.

    Embeddings, norms and head are copied with the layers that stay, in the teacher's types and on
    its devices; nothing is shared, and the teacher stays as it is. Configuration and numbers of
    layers are the student's own, so that ``generate`` with a cache, ``save_pretrained`` and
    ``from_pretrained`` work. What the student computes is what the teacher would with the other
    layers left out.

    Args:
        model: The teacher: a ``PreTrainedModel``, or Composer's ``HuggingFaceModel`` of one.
        layers: Which stay, in each list of layers: a number, for as many at even distances, the
            first and the last among them (DistilBERT's choice); their indices; or
            ``'importance'``, for the ``n_layers`` whose absence raises the loss the most. Or a
            mapping of lists to one of these, such as ``{'decoder': 2}`` for an encoder-decoder
            that keeps its whole encoder; a list is named by its path or by a part of it. None: all.
        n_layers: How many ``'importance'`` keeps.
        hidden: How many channels between the layers stay, those of the largest activations; for
            models that are like Llama or BERT alone. A norm over fewer channels is another norm, so
            that such a student has to be trained before it is of use.
        intermediate: How many neurons of each feed-forward network stay, likewise.
        heads: How many attention heads of each layer stay, likewise.
        batches: What the loss or the activations are measured on; see :func:`layer_importance`.
        stacks: Where an architecture that is not known keeps its layers: paths of lists, and what
            the configuration calls their lengths.

    Returns:
        The student, in eval mode as from ``from_pretrained``, with gradients on; bare, so that a
        Composer ``HuggingFaceModel`` is yours to wrap around it.

    Raises:
        TypeError: If ``model`` is no Hugging Face model, or an argument is of the wrong kind.
        ValueError: If there are no such layers, or the architecture can't lose these, or its width
            can't be cut.

    Reference:
        Sanh et al. 2019, arXiv 1910.01108 (even distances); Muralidharan et al. 2024,
        arXiv 2407.14679 (importance).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> teacher = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=4, vocab_size=16))
        >>> student = student_from_teacher(teacher, layers=2)
        >>> student.config.n_layer, len(student.transformer.h)
        (2, 2)
    """
    teacher, widths = bare(model), Widths(hidden, intermediate, heads)
    if layers is None and not widths:
        raise ValueError("layers, hidden, intermediate or heads must say what stays, got None.")
    if n_layers is not None and not _by_importance(layers):
        raise ValueError(
            f"n_layers={n_layers!r} is how many layers='importance' keeps, but layers is "
            f"{layers!r}. Give one of the two."
        )
    batches = None if batches is None else checked_batches(batches)
    student = teacher if layers is None else _shorter(teacher, layers, n_layers, batches, stacks)
    return narrowed(student, widths, batches) if widths else student


def _shorter(
    teacher: Any, layers: Any, n_layers: int | None, batches: Any, stacks: Mapping[str, str] | None
) -> Any:
    """Return a student with some of the layers."""
    found = stacks_of(teacher, stacks)
    kept = {
        stack: _chosen(teacher, stack, choice, n_layers, batches)
        for stack, choice in _choices(found, layers).items()
    }
    config = copy.deepcopy(teacher.config)
    # Where two lists share a configuration, what it says of single layers is of the first
    for stack in {stack.config: stack for stack in reversed(kept)}.values():
        for part in _counting(config, stack, found):
            _select(part, stack.length, kept[stack])
        if stack.config[-1:] == ("vision_config",):
            _read_the_same(config, stack, kept[stack])
    for stack, indices in kept.items():
        for part in _counting(config, stack, found):
            _shorten(part, stack.counts, len(indices))
    return build_like(teacher, config, {stack.path: kept[stack] for stack in kept})


def _by_importance(layers: Any) -> bool:
    choices = list(layers.values()) if isinstance(layers, Mapping) else [layers]
    return any(isinstance(choice, str) and choice == "importance" for choice in choices)


def evenly(count: int, length: int) -> list[int]:
    """Return ``count`` of ``length`` indices at even distances, the first and the last among them.

    Example:
        >>> evenly(6, 12)
        [0, 2, 4, 7, 9, 11]
    """
    if count == 1:
        return [0]
    gaps = count - 1
    return [(2 * i * (length - 1) + gaps) // (2 * gaps) for i in range(count)]


def _choices(stacks: Sequence[Stack], layers: Any) -> dict[Stack, Any]:
    """Return the choice for each of the lists that shall be shorter."""
    if not isinstance(layers, Mapping):
        if len({stack.config for stack in stacks}) > 1 and not _is_encoder_decoder(stacks):
            raise ValueError(
                f"layers must say of which list, since there are several: "
                f"{', '.join(map(str, stacks))}. Pass a mapping such as "
                f"{{'{stacks[-1].path}': {layers!r}}}."
            )
        return dict.fromkeys(stacks, layers)
    chosen, known = {}, {stack.path: stack for stack in stacks}
    for name, choice in layers.items():
        found = matching(name, known)
        if len(found) != 1 or known[found[0]] in chosen:
            times = "named twice" if len(found) == 1 else f"{len(found)} of them"
            raise ValueError(
                f"layers names {name!r}, which must be one of the lists of layers, "
                f"{', '.join(map(str, stacks))}, but is {times}. Write its whole path, once."
            )
        chosen[known[found[0]]] = choice
    if not chosen:
        raise ValueError(
            f"layers must name at least one of the lists of layers, {', '.join(map(str, stacks))}, "
            f"such as {{'{stacks[0].path}': 2}}, got {{}}."
        )
    return chosen


def _is_encoder_decoder(stacks: Sequence[Stack]) -> bool:
    return {stack.config[-1:] for stack in stacks} == {("encoder",), ("decoder",)}


def _chosen(
    teacher: Any, stack: Stack, layers: Any, n_layers: int | None, batches: Any
) -> list[int]:
    """Return the indices of the layers of one list that stay, checked."""
    if hasattr(layers, "tolist"):  # of NumPy or torch
        layers = layers.tolist()
    if isinstance(layers, str) and layers == "importance":
        if n_layers is None or batches is None:
            raise ValueError(
                "layers='importance' needs n_layers, how many shall stay, and batches, on which "
                f"the loss is measured; got n_layers={n_layers!r} and "
                f"batches={'None' if batches is None else 'some'}."
            )
        rise = layer_importance(teacher, batches, stack=stack.path)
        order = sorted(range(stack.length), key=lambda i: (-rise[i], i))
        return sorted(order[: _checked_count(n_layers, stack)])
    if _is_whole(layers):
        return evenly(_checked_count(int(layers), stack), stack.length)
    if not isinstance(layers, Sequence) or not all(map(_is_whole, layers)):
        raise TypeError(
            "layers must be a number of layers, a list of their indices, which are whole numbers, "
            f"'importance' or a mapping of lists of layers to one of these, got {layers!r}."
        )
    indices = [int(i) for i in layers]
    if (
        not indices
        or any(not 0 <= i < stack.length for i in indices)
        or indices != sorted(set(indices))
    ):
        raise ValueError(
            f"layers must be rising indices from 0 to {stack.length - 1} of {stack.path}, each at "
            f"most once, got {list(layers)!r}."
        )
    return indices


def _is_whole(number: Any) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)


def _checked_count(count: Any, stack: Stack) -> int:
    if not _is_whole(count) or not 1 <= int(count) <= stack.length:
        raise ValueError(
            f"the number of layers that stay in {stack.path} must lie in [1, {stack.length}], the "
            f"number that it has, got {count!r}."
        )
    return int(count)


def _counting(config: Any, stack: Stack, stacks: Sequence[Stack]) -> list[Any]:
    """Return the part of a configuration that counts a list, and the whole where that repeats it.

    Qwen 2.5 VL's whole configuration says again what its ``text_config`` does.
    """
    repeated = stack.config == ("text_config",) and all(other.config for other in stacks)
    repeated = repeated and all(getattr(config, n, None) == stack.length for n in stack.counts)
    return [stack.config_of(config), *([config] if repeated else [])]


def _read_the_same(config: Any, stack: Stack, indices: Sequence[int]) -> None:
    """Have those hidden states of a tower of images be read that come after the same layers."""

    def moved(place: int) -> int:
        behind = sum(i < place % (stack.length + 1) for i in indices)
        return behind if place >= 0 else behind - len(indices) - 1

    for part in (config, stack.config_of(config)):
        for name in HIDDEN_STATES:
            places = getattr(part, name, None)
            if isinstance(places, int):
                setattr(part, name, moved(places))
            elif isinstance(places, (list, tuple)):
                setattr(part, name, type(places)(map(moved, places)))


def _shorten(config: Any, counts: Sequence[str], length: int) -> None:
    """Write into a configuration how many layers there are."""
    for name in counts:
        setattr(config, name, length)


def _select(config: Any, length: int, indices: Sequence[int]) -> None:
    """Keep what a configuration says of single layers for those that stay."""
    for name in PER_LAYER:
        name = getattr(config, "attribute_map", {}).get(name, name)
        values = getattr(config, name, None)
        if isinstance(values, (list, tuple)) and len(values) == length:
            kinds = type(values)(values[i] for i in indices)
            # RecurrentGemma repeats its "block_types" to get one a layer
            computed = isinstance(getattr(type(config), name, None), property)
            name = "block_types" if computed and hasattr(config, "block_types") else name
            if not isinstance(getattr(type(config), name, None), property):
                setattr(config, name, kinds)
    if hasattr(config, "attention_types"):  # GPT-Neo's: kinds, and how often each
        config.attention_types = [[[kind], 1] for kind in config.attention_layers]
    for name in INDICES:
        numbers = getattr(config, name, None)
        if isinstance(numbers, (list, tuple)):
            setattr(config, name, type(numbers)(n for n, i in enumerate(indices) if i in numbers))
    for name in FIRST:
        if isinstance(number := getattr(config, name, None), int):
            setattr(config, name, sum(i < number for i in indices))
