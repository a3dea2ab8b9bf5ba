"""``FeatureTerm``: which layers are compared, how, how much and when."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from composer.core import State, Time
from torch import nn

from composer_distill.schedule import Weight, Window, check_weight, to_time, weight_now
from composer_distill.terms.features.companions import Projector, check_projector
from composer_distill.terms.judging import check_mask_fn
from composer_distill.terms.positions import MaskFn

LayerFn = Callable[[nn.Module, Any], Any]
"""``(model, outputs) -> tensor``: features that no layer's name tells."""

Layers = str | Sequence[str] | LayerFn
"""A layer's name, a glob or a list of both, or a callable."""


class FeatureTerm:
    """A term of the loss: layers of the student against layers of the teacher.

    ``Distillation(feature_terms=[...])`` adds ``weight * loss(student, teacher)`` of each term to
    what it trains, and logs the unweighted value as ``distillation/features/<name>``. With several
    pairs of layers it is the sum over pairs, with several teachers the mean by their shares.

    A layer is named as ``named_modules()`` of your own model shows it, whatever wraps it meanwhile.
    Of a layer that returns a tuple the first tensor counts. Hugging Face models also have
    ``hidden_states.3``, ``attentions.2`` (probabilities), ``queries.5``, ``keys.5``, ``values.5``,
    ``attention.5`` (these three together) and ``scores.5``.

    Args:
        student: The student's layers: a name; a glob such as ``'encoder.layer.*'``, whose ``*``
            stands for one part between dots; a list of both; or any callable
            ``(model, outputs) -> tensor``.
        teacher: The teacher's layers; None for the same names. A list has as many as the student's.
            Of a glob with k times as many every k-th counts, the last of each k.
        loss: A loss of features, such as :class:`.AttentionTransfer`; or any callable
            ``(student, teacher) -> tensor``, which gets the kept positions as rows.
        weight: Weight of the term: a number, or a schedule, a callable of the Trainer's ``State``.
        projector: Maps the student's features to the teacher's width, and trains beside it:
            ``'linear'`` over the last axis, ``'conv1x1'`` over axis 1, ``'mlp'`` of two layers over
            the last axis, or a module, of which each run trains a copy. It is never a part of the
            student.
        mask_fn: Which positions count: ``(batch, outputs) -> bool tensor or None``. None: the
            attended ones, where the batch has an attention mask that fits the features.
        start_dur: First moment at which the term acts, within the window of ``Distillation``; None
            for that window's own.
        end_dur: First moment at which it no longer acts; None likewise.
        of: Whether a named layer's ``'output'`` or its ``'input'`` is compared.
        name: What the log calls it; None for the student's layer.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If it is out of its range.

    Example:
        >>> from composer_distill.losses import AttentionTransfer
        >>> FeatureTerm("layer3", loss=AttentionTransfer(), weight=1000.0)
        FeatureTerm(student='layer3', loss=AttentionTransfer(p=2.0, dim=1), weight=1000.0)
    """

    def __init__(
        self,
        student: Layers,
        teacher: Layers | None = None,
        loss: Callable[..., Any] | None = None,
        weight: Weight = 1.0,
        projector: Projector | None = None,
        mask_fn: MaskFn | None = None,
        start_dur: float | str | Time | None = None,
        end_dur: float | str | Time | None = None,
        of: Literal["output", "input"] = "output",
        name: str | None = None,
    ) -> None:
        self.student = _check_layers("student", student)
        self.teacher = self.student if teacher is None else _check_layers("teacher", teacher)
        self.loss = _check_loss(loss)
        check_weight(weight, "weight")
        self.weight = weight
        self.projector = check_projector(projector)
        self.mask_fn = check_mask_fn(mask_fn)
        self.start_dur = None if start_dur is None else to_time(start_dur, "start_dur")
        self.end_dur = None if end_dur is None else to_time(end_dur, "end_dur")
        if of not in ("output", "input"):
            raise ValueError(f"of must be 'output' or 'input', got {of!r}.")
        self.of: Literal["output", "input"] = of
        self.name = _describe(self.student) if name is None else str(name)

    def weight_within(self, outer: Window, state: State) -> float:
        """Return the weight now: 0 outside the term's own window.

        Args:
            outer: The window of ``Distillation``.
            state: The Trainer's state.
        """
        window = Window(self.start_dur or outer.start, self.end_dur or outer.end)
        return weight_now(self.weight, state, "weight") if window.contains(state) else 0.0

    def __repr__(self) -> str:
        teacher = "" if self.teacher is self.student else f", teacher={_show(self.teacher)}"
        return (
            f"FeatureTerm(student={_show(self.student)}{teacher}, loss={_show(self.loss)}, "
            f"weight={_show(self.weight)})"
        )


def _check_layers(argument: str, layers: Any) -> Any:
    """Return a layer argument, or say what is wrong with it."""
    if callable(layers) or (isinstance(layers, str) and layers):
        return layers
    listed = isinstance(layers, Sequence) and not isinstance(layers, str) and bool(layers)
    if listed and all(isinstance(name, str) and name for name in layers):
        return tuple(layers)
    raise TypeError(
        f"{argument} must be a layer's name, a glob, a list of names or a callable "
        f"(model, outputs) -> tensor, got {layers!r}. Names are those of model.named_modules()."
    )


def _check_loss(loss: Any) -> Any:
    if not callable(loss) or isinstance(loss, type):
        came = f"the class {loss.__name__}" if isinstance(loss, type) else repr(loss)
        raise TypeError(
            f"loss must be callable as (student, teacher), got {came}. "
            "Pass an instance such as HiddenMSE()."
        )
    return loss


def _describe(layers: Any) -> str:
    if isinstance(layers, str):
        return layers
    if isinstance(layers, tuple):
        return layers[0] if len(layers) == 1 else f"{layers[0]}..{layers[-1]}"
    return getattr(layers, "__name__", type(layers).__name__)


def _show(value: Any) -> str:
    text = repr(value)
    return text if " at 0x" not in text else getattr(value, "__qualname__", type(value).__name__)
