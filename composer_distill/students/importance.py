"""How much each layer of a teacher matters."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from composer_distill.students.building import bare, checked_batches
from composer_distill.students.layers import Stack, lists_of, matching, stacks_of


def layer_importance(
    model: Any, batches: Iterable[Mapping[str, Any]], *, stack: str | None = None
) -> list[float]:
    """Measure by how much the loss rises without each layer, in nats.

    It costs one forward over all batches for each layer and one more, without gradients. The model
    is run in eval mode and comes back in its own; random streams are the user's affair.

    Args:
        model: A Hugging Face model.
        batches: Its inputs, labels among them, so that it returns a loss; the mean over batches is
            taken. They are read once, and kept.
        stack: The path of the list of layers, such as ``'model.decoder.layers'``, or a part of it
            that no other has; the only one where there is but one.

    Raises:
        TypeError: If a batch is no mapping.
        ValueError: If there are no batches, a batch gives no finite loss, or several lists.

    Reference:
        Muralidharan et al. 2024, arXiv 2407.14679, section 2.2.
    """
    teacher = bare(model)
    kept = checked_batches(batches)
    if not kept:
        raise ValueError("batches must hold at least one batch with labels, got none.")
    path = _only(stacks_of(teacher)).path if stack is None else _path(teacher, stack)
    modes = [(module, module.training) for module in teacher.modules()]
    teacher.eval()
    try:
        whole = _losses(teacher, kept)
        _check_finite(whole)
        rises = []
        for number, layer in enumerate(teacher.get_submodule(path)):
            with left_out(layer):
                rises.append((sum(_losses(teacher, kept)) - sum(whole)) / len(kept))
            if math.isnan(rises[-1]):
                raise ValueError(
                    f"batches: the loss without layer {number} of {path} is NaN, as where numbers "
                    "overflow. Measure in single precision, on model.float()."
                )
    finally:
        for module, mode in modes:
            module.training = mode
    return rises


def _check_finite(losses: list[float]) -> None:
    for number, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise ValueError(
                f"batches: the teacher's loss on batch {number}, counted from 0, is {loss}, so "
                "that no layer's rise of it can be told. Each batch needs a finite loss, and so at "
                "least one label that counts, not -100 alone: leave this batch out."
            )


@contextmanager
def left_out(layer: nn.Module) -> Iterator[None]:
    """Have a layer hand on what it is given, for the time of a context."""
    forward = layer.forward

    def hand_on(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        hidden = arguments[0] if arguments else named["hidden_states"]
        if isinstance(output, (tuple, list)):
            return type(output)((hidden, *output[1:]))
        return {**output, next(iter(output)): hidden} if isinstance(output, dict) else hidden

    before = vars(layer).get("forward")
    layer.forward = hand_on  # no hook: some models call forward itself, which passes hooks by
    try:
        yield
    finally:
        del layer.forward
        if before is not None:
            layer.forward = before


def _losses(model: Any, batches: list[Mapping[str, Any]]) -> list[float]:
    losses = []
    for batch in batches:
        on_device = {
            key: value.to(model.device) if isinstance(value, Tensor) else value
            for key, value in batch.items()
        }
        with torch.no_grad():
            loss = model(**on_device).loss
        if loss is None:
            raise ValueError(
                f"batches must have labels, so that the model returns a loss; got {list(batch)}."
            )
        losses.append(float(loss))
    return losses


def _path(model: Any, stack: str) -> str:
    lists = dict(lists_of(model))
    found = matching(stack, lists)
    if len(found) != 1:
        raise ValueError(
            f"stack must be one of the lists of modules of a {type(model).__name__}, "
            f"{', '.join(lists) or 'of which it has none'}, got {stack!r}, which is {len(found)} "
            "of them. Write its whole path."
        )
    return found[0]


def _only(stacks: tuple[Stack, ...]) -> Stack:
    if len(stacks) != 1:
        raise ValueError(f"stack must be one of {', '.join(map(str, stacks))}, got None.")
    return stacks[0]
