"""A decoder's inputs from the labels, as the model's own family makes them."""

import inspect
import sys
from typing import Any

from torch import Tensor, nn


def decoder_inputs(model: nn.Module, labels: Tensor) -> Tensor | None:
    """Return the labels one position later, behind the family's start token.

    Each family of transformers does it in its own way, and its forward does it where labels are
    given. It is asked by the method that many have for it, or else by the one, or the function of
    its module, that its forward itself calls.

    Args:
        model: An encoder-decoder, wrapped or not.
        labels: The target tokens, -100 for none.

    Shape:
        - labels, result: ``(B, T)``.

    Returns:
        The decoder's inputs, or None where nothing of the kind is known of the model.
    """
    for module in model.modules():
        prepare = getattr(module, "prepare_decoder_input_ids_from_labels", None)
        if callable(prepare):
            return _tensor(prepare(labels=labels))
        shift = getattr(module, "_shift_right", None)
        if callable(shift):
            return _tensor(shift(labels))
        function = _function_of_family(module)
        if function is not None:
            named = inspect.signature(function).parameters
            config = getattr(module, "config", None)
            tokens = {n: getattr(config, n, None) for n in named if n.endswith("_token_id")}
            return _tensor(function(labels, **tokens))
    return None


def _function_of_family(module: nn.Module) -> Any | None:
    """Return ``shift_tokens_right`` of the file in which the module's class is defined."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return getattr(sys.modules[kind.__module__], "shift_tokens_right", None)
    return None


def _tensor(made: Any) -> Tensor | None:
    return made if isinstance(made, Tensor) else None
