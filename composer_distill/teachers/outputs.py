"""What goes into a model and what comes out: the forward contract, in plain torch.

A batch is a tensor, a tuple or list whose first element is the input, or a mapping of names to
tensors. An output is a tensor, a mapping or object with ``logits``, or a tuple.
"""

import inspect
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from composer_distill.caching.keys import BY_POSITION
from composer_distill.teachers.decoders import decoder_inputs
from composer_distill.teachers.packed import read_over_borders

LABEL_KEYS = frozenset(
    ("labels", "label", "label_ids", "next_sentence_label", "start_positions", "end_positions")
)
"""Keys of a mapping batch that teachers never see: a model that reads them computes a loss."""


def call_model(model: nn.Module, batch: Any, *, over_borders: bool = False) -> Any:
    """Run a model's forward on a batch, without labels and without changing the batch.

    A ``ComposerModel`` takes the whole batch. A plain module takes the batch's first element; where
    that is a mapping, as for Hugging Face models, its entries become the keyword arguments that the
    module's forward names, or the mapping itself the only argument where it names none of them. A
    forward of ``**kwargs`` gets them all; but a Hugging Face model's, those alone that it knows.

    Args:
        model: The model, in the mode that it should run in.
        batch: A tensor, a tuple or list, or a mapping.
        over_borders: Whether a Hugging Face model reads over the borders of packed texts, as its
            student does; see ``packed``.

    Returns:
        Whatever the model returns.
    """
    if hasattr(model, "eval_forward"):  # a ComposerModel
        if isinstance(batch, Mapping) and hasattr(
            model, "model_forward_args"
        ):  # a HuggingFaceModel
            wrapped = getattr(model, "model", model)
            names = set(model.model_forward_args)  # pyright: ignore[reportArgumentType]
            batch = _language_inputs(wrapped, batch, names, over_borders)
        return model(batch)
    inputs = batch[0] if isinstance(batch, Sequence) else batch
    if not isinstance(inputs, Mapping):
        return model(inputs)
    names = _forward_names(model)
    unlabelled = {key: value for key, value in inputs.items() if key not in LABEL_KEYS}
    if names is not None and not names & unlabelled.keys():
        return model(unlabelled)
    return model(**_language_inputs(model, inputs, names, over_borders))


def extract_logits(output: Any, owner: str) -> Tensor:
    """Take the logits out of a model's output.

    Args:
        output: A tensor; a mapping or object with ``logits``, or with ``start_logits`` and
            ``end_logits``, whose positions are the classes; a mapping with a single tensor; a tuple
            or list without them, whose first tensor that is no scalar counts (a loss may come
            before it).
        owner: Whose output it is, for errors.

    Returns:
        The logits, a floating-point tensor: both heads of a span stacked, ``(B, 2, T)``.

    Raises:
        TypeError: If there are no logits to be found, several tensors may be them, or they are not
            floating-point.

    Example:
        >>> import torch
        >>> extract_logits({"logits": torch.zeros(2, 3)}, "the student").shape
        torch.Size([2, 3])
    """
    logits = _find_logits(output)
    if logits is None:
        raise TypeError(f"{owner}: {_no_logits(output)}")
    if not logits.is_floating_point():
        raise TypeError(
            f"{owner}: its logits must be floating-point, got {logits.dtype}. "
            "Return the scores before argmax."
        )
    return logits


def passed_over(output: Any) -> str | None:
    """Return what to tell where the first of a sequence's tensors is taken, and others are not.

    A detector that answers boxes and scores has its boxes first, and they look like logits.

    Args:
        output: A model's output, in which :func:`extract_logits` finds logits.

    Example:
        >>> import torch
        >>> passed_over((torch.zeros(2, 7, 4), torch.zeros(2, 7, 3)))
        'the first of [0] (2, 7, 4), [1] (2, 7, 3)'
        >>> passed_over({"logits": torch.zeros(2, 3), "hidden": torch.zeros(2, 8)})
    """
    found = _tensors_of(output)
    named = isinstance(getattr(output, "logits", None), Tensor)
    if named or not isinstance(output, Sequence) or len(found) < 2:
        return None
    return f"the first of {', '.join(f'{how} {tuple(x.shape)}' for how, x in found.items())}"


def names_read(model: nn.Module, batch: Any) -> tuple[str, ...] | None:
    """Return the names of a batch's entries that :func:`call_model` hands to a model, in order.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        The names, ``labels`` among them where a decoder's inputs are made of them; or None where
        the model takes the batch, or its input, whole.
    """
    if hasattr(model, "eval_forward"):
        if not (isinstance(batch, Mapping) and hasattr(model, "model_forward_args")):
            return None
        inputs, names = batch, set(model.model_forward_args)  # pyright: ignore[reportArgumentType]
        model = getattr(model, "model", model)
    else:
        inputs = batch[0] if isinstance(batch, Sequence) else batch
        if not isinstance(inputs, Mapping):
            return None
        names = _forward_names(model)
    unlabelled = inputs.keys() - LABEL_KEYS
    if names is not None and not names & unlabelled:
        return None
    read = unlabelled if names is None else names & unlabelled
    made = {"labels"} if _makes_decoder_inputs(model, inputs, names) else set()
    return tuple(sorted(read | made))


def names_lacked(model: nn.Module, read: Collection[str] | None) -> tuple[str, ...]:
    """Return the names of entries for each position, the mask's too, that a model would read too.

    Args:
        model: The model.
        read: What :func:`names_read` found of a batch.
    """
    if read is None:
        return ()
    wrapped = hasattr(model, "eval_forward")  # then by Composer, since its names were read
    names = set(model.model_forward_args) if wrapped else _forward_names(model)  # pyright: ignore[reportArgumentType]
    known = ("attention_mask", *BY_POSITION)
    return tuple(name for name in known if name in (names or ()) and name not in read)


def _find_logits(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    read = output.get if isinstance(output, Mapping) else partial(getattr, output)  # or of a tuple
    logits, start, end = (read(n, None) for n in ("logits", "start_logits", "end_logits"))
    if isinstance(logits, Tensor):
        return logits
    if isinstance(start, Tensor) and isinstance(end, Tensor) and start.shape == end.shape:
        return torch.stack((start, end), dim=1)
    tensors = list(_tensors_of(output).values())
    if isinstance(output, Sequence):
        alike = len(tensors) > 1 and tensors[0].shape == tensors[1].shape  # such as two heads
        return None if alike or not tensors else tensors[0]
    return tensors[0] if isinstance(output, Mapping) and len(tensors) == 1 else None


def _tensors_of(output: Any) -> dict[str, Tensor]:
    """Return what may be logits of an output, by what reads it: its tensors but for scalars."""
    if isinstance(output, Mapping):
        read = {f"[{name!r}]": value for name, value in output.items()}
    elif isinstance(output, Sequence) and not isinstance(output, str):
        read = {f"[{i}]": value for i, value in enumerate(output)}
    else:
        read = {f".{name}": value for name, value in getattr(output, "__dict__", {}).items()}
    return {how: x for how, x in read.items() if isinstance(x, Tensor) and x.ndim > 0}


def _no_logits(output: Any) -> str:
    """Return what is wrong with an output that holds no logits, or too many, and what to do."""
    remedy = (
        "in Distillation(Teacher(teacher, output_fn=choose), ..., student_output_fn=choose) choose "
        "them for student and teacher alike"
    )
    found = _tensors_of(output)
    if len(found) < 2:
        return (
            f"its output must be a tensor, or hold one as 'logits', got {_describe(output)}. With "
            f"choose = lambda output: ..., which returns a tensor, {remedy}."
        )
    shapes = ", ".join(f"{how.strip('[].')} {tuple(tensor.shape)}" for how, tensor in found.items())
    return (
        f"its output ({type(output).__name__}) holds several tensors, of which none is called "
        f"'logits': {shapes}. With choose = lambda output: output{next(iter(found))}, {remedy}."
    )


def _language_inputs(
    model: nn.Module, batch: Mapping[str, Any], names: set[str] | None, over_borders: bool
) -> dict[str, Any]:
    """Return the keyword arguments for ``model``: no labels, a decoder's inputs made."""
    inputs = {
        key: value
        for key, value in batch.items()
        if key not in LABEL_KEYS and (names is None or key in names)
    }
    if _makes_decoder_inputs(model, batch, names):
        made = decoder_inputs(model, batch["labels"])
        inputs |= {} if made is None else {"decoder_input_ids": made}
    if names is not None and "use_cache" in names:
        inputs["use_cache"] = False
    if over_borders and names is not None and "attention_mask" in names:
        read_over_borders(model, inputs)
    return inputs


def _makes_decoder_inputs(
    model: nn.Module, batch: Mapping[str, Any], names: set[str] | None
) -> bool:
    """Return whether a decoder's inputs are to be made of the labels."""
    labels = batch.get("labels")
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    takes_tokens = is_pair and (names is None or "decoder_input_ids" in names)
    given = batch.keys() & {"decoder_input_ids", "decoder_inputs_embeds"} & (names or batch.keys())
    return takes_tokens and not given and isinstance(labels, Tensor) and labels.ndim == 2


def _forward_names(model: nn.Module) -> set[str] | None:
    """Return the keyword arguments that the model's forward takes, None for any."""
    inner = _pretrained(model)
    parameters = inspect.signature((inner or model).forward).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    others = [parameter for parameter in parameters if parameter.kind is parameter.VAR_KEYWORD]
    if not others:
        return names
    if inner is None:
        return None
    # transformers writes down what it hands on: **kwargs: Unpack[SomeTypedDict]
    known = (kind for other in others for kind in getattr(other.annotation, "__args__", ()))
    return names.union(*(getattr(kind, "__annotations__", {}) for kind in known))


def _pretrained(model: nn.Module) -> Any | None:
    """Return the model of transformers that this is, or that PEFT put its adapters into."""
    transformers = sys.modules.get("transformers")
    base = getattr(model, "get_base_model", None)
    inner = base() if callable(base) else model
    is_one = transformers is not None and isinstance(inner, transformers.PreTrainedModel)
    return inner if is_one else None


def _describe(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"{type(output).__name__} with the keys {list(output)}"
    return type(output).__name__
