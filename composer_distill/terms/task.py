"""What a student's architecture says about its positions."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

IGNORED_LABEL = -100
"""The label that Hugging Face's and torch's losses leave out."""


@dataclass(frozen=True)
class Task:
    """What a student's architecture says about its positions.

    Args:
        shift: Whether the logits at a position predict the next label, as in a causal LM.
        encoder_decoder: Whether the logits belong to a decoder, so that ``attention_mask``, which
            is the encoder's, says nothing about them.
        aligned: Whether the batch's labels were shifted already, as Composer does in evaluation.
        labelled: Whether the positions that carry a label are those that count, though their logits
            predict the label where they stand.
        frames: The model's own rule from a mask over what it reads, such as samples of sound, to
            one over its positions: called with their number and the mask. None where it has none.
        classes: The numbers of classes that the model says it has, such as its vocabulary's size.
    """

    shift: bool = False
    encoder_decoder: bool = False
    aligned: bool = False
    labelled: bool = False
    frames: Callable[[int, Tensor], Tensor] | None = field(default=None, repr=False, compare=False)
    classes: frozenset[int] = field(default=frozenset(), repr=False, compare=False)

    @property
    def counts_labels(self) -> bool:
        """Whether the positions that carry the task's own loss are those that count."""
        return self.shift or self.encoder_decoder or self.labelled

    def found(self, *, predicts_next: bool) -> "Task":
        """Return the task as the student's own loss says it is.

        Args:
            predicts_next: Whether the logits at a position predict the next label.
        """
        return replace(self, shift=predicts_next, labelled=self.labelled or self.shift)


def task_of(model: nn.Module) -> Task:
    """Read the task from a student.

    It is what is known before the first loss, which may tell better; see ``own_loss``. A model's
    own ``shift_labels`` (a Composer ``HuggingFaceModel`` has it) decides; without it the model is
    causal if it is, or holds, one of transformers' registered causal LM classes.

    Args:
        model: The student, wrapped for distributed training or not.

    Example:
        >>> task_of(nn.Linear(2, 2))
        Task(shift=False, encoder_decoder=False, aligned=False, labelled=False)
    """
    config = _first(model, "config")
    # A family's encoder alone, such as T5ForTokenClassification, says so too
    encoder_decoder = bool(getattr(config, "is_encoder_decoder", False)) and any(
        "decoder_input_ids" in inspect.signature(module.forward).parameters
        for module in model.modules()
    )
    shift = _first(model, "shift_labels")
    if shift is None:
        shift = not encoder_decoder and any(map(_is_causal_lm, model.modules()))
    frames: Any = _first(model, "_get_feature_vector_attention_mask")  # transformers' speech models
    return Task(bool(shift), encoder_decoder, frames=frames, classes=_classes(model, config))


def next_labels(labels: Tensor) -> Tensor:
    """Return at each position the label of the next one, -100 at the last.

    Args:
        labels: One class a position.

    Shape:
        - labels, result: ``(..., T)``.

    Example:
        >>> import torch
        >>> next_labels(torch.tensor([[4, 5, 6]]))
        tensor([[   5,    6, -100]])
    """
    return F.pad(labels[..., 1:], (0, 1), value=IGNORED_LABEL)


def _first(model: nn.Module, name: str) -> Any:
    """Return attribute ``name`` of the outermost module that has it, None where none does."""
    return next((getattr(m, name) for m in model.modules() if hasattr(m, name)), None)


def _classes(model: nn.Module, config: Any) -> frozenset[int]:
    """Return the numbers of classes that a model's ``num_classes`` or configuration names."""
    told = [_first(model, "num_classes"), getattr(config, "vocab_size", None)]
    if getattr(config, "problem_type", None) != "regression":
        told.append(getattr(config, "num_labels", None))
    return frozenset(size for size in told if isinstance(size, int))


def _is_causal_lm(module: nn.Module) -> bool:
    transformers = sys.modules.get("transformers")
    if transformers is None:  # then the module can't be one of its classes
        return False
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return any(
        kind.__name__ in names and kind.__module__.startswith("transformers.")
        for kind in type(module).__mro__
    )
