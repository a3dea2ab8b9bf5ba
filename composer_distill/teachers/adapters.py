"""A student's own base as its teacher: the same weights, the adapters of PEFT left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from composer.core import State, Time
from torch import Tensor, nn

from composer_distill.schedule import Weight
from composer_distill.teachers.ema import bare
from composer_distill.teachers.heads import only_at
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.modes import eval_mode_within
from composer_distill.teachers.sharding import Sharding
from composer_distill.teachers.splitting import shallow_copy
from composer_distill.teachers.teacher import Extract, Forward, Teacher

_SWITCH = "_disable_adapters"  # of PEFT's layers: their own setter moves requires_grad too
_WRAPPED = ("base_layer", "original_module")  # what PEFT's layers and whole copies stand around


class AdapterFreeTeacher(Teacher):
    """The student without its adapters (PEFT): one copy of the weights is student and teacher.

    Only adapters may train, such as LoRA's, so that the base stays what it was. For a forward
    without gradients the student's adapters are passed over and its modules are in eval mode; then
    all is as it was: each module's mode, random streams, gradients and what was recorded for the
    backward. It costs that forward, and no memory beside its activations.

    Args:
        start_dur: First moment at which it answers.
        end_dur: First moment at which it no longer answers.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined, or a schedule.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range. At the start of training: if the student has
            no adapters that can be passed over, trains more than these, or is cut by FSDP.

    Example:
        >>> from composer_distill import AdapterFreeTeacher, Distillation, KLDivergence
        >>> algorithm = Distillation(AdapterFreeTeacher(), KLDivergence(1.0), 0.1, 1.0)
    """

    def __init__(
        self,
        *,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        name: str = "student without adapters",
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(
            nn.Module(),  # it has no weights of its own
            name=name,
            weight=weight,
            start_dur=start_dur,
            end_dur=end_dur,
        )
        self.student: nn.Module = self.model

    def forward(self, batch: Any, call: Forward, extract: Extract) -> Tensor:
        """Answer a batch by the student without its adapters."""
        with eval_mode_within(self.student), adapters_off(self.student):
            return extract(call(self.student, shallow_copy(batch)))

    def identity(self) -> str:
        """Return who it is: a rule, since its weights are the student's."""
        return type(self).__name__

    former_identity = identity

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class AdapterFree:
    """A source of targets that runs the student itself.

    Args:
        teacher: Its options.
        label: What errors and logs call it in this run.
    """

    def __init__(self, teacher: AdapterFreeTeacher, label: str) -> None:
        self.teacher = teacher
        self.label = label
        self.weight, self.window = teacher.weight, teacher.window
        self._live = LiveTeacher(teacher, label)

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Find the student's adapters, at INIT; raise ValueError where they can't be passed over.

        Args:
            state: The Trainer's state.
            sharding: Without effect.
        """
        if state.fsdp_config is not None:
            raise ValueError(
                f"{self.label}: FSDP gathers the student's weights for its own forward and "
                "backward, between which this teacher would run. Train without FSDP, or pass a "
                "copy of the base as Teacher(model)."
            )
        self.teacher.student = bare(state.model)
        check_adapters(self.teacher.student, self.label)

    def settle(self) -> None:
        """Do nothing: the student is there."""

    def leave(self) -> None:
        """Do nothing: the student stays."""

    def target(self, microbatch: Microbatch, state: State) -> Tensor:
        """Return the logits of the student without its adapters.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.
        """
        kept = only_at(self.teacher.student, microbatch)
        return self._live.ask(microbatch, state, kept)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Pass a model's adapters over inside a ``with`` block, and touch nothing else.

    Args:
        model: A model that PEFT put adapters into.
    """
    layers = adapter_layers(model)
    before = [getattr(layer, _SWITCH) for layer in layers]
    try:
        for layer in layers:
            setattr(layer, _SWITCH, True)
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            setattr(layer, _SWITCH, was)


def adapter_layers(model: nn.Module) -> list[Any]:
    """Return the modules of a model that PEFT put around others."""
    return [module for module in model.modules() if hasattr(module, _SWITCH)]


def check_adapters(model: nn.Module, label: str) -> None:
    """Refuse a student whose base can't be run as it was.

    Raises:
        ValueError: If it has no adapters, adapters that are no layers or that are merged into the
            base, or if it trains more than adapters.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError(
            f"{label}: the student has no adapters that can be passed over layer by layer, as "
            "LoRA's can. Put them in with peft.get_peft_model(model, LoraConfig(...)), or pass a "
            "copy of the base as Teacher(model)."
        )
    if any(getattr(layer, "merged", False) for layer in layers):
        raise ValueError(
            f"{label}: the student's adapters are merged into its base, which is no longer what it "
            "was. Call unmerge_adapter() first."
        )
    adapters = {id(parameter) for layer in layers for parameter in _own(layer)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapters:
            raise ValueError(
                f"{label}: the student trains {name!r} of its base too, so the base would not stay "
                "what it was. Freeze it, or pass a copy of the base as Teacher(model)."
            )


def _own(layer: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of a layer that are its adapters' own: all but those of what it wraps.

    PEFT's layers list their adapters' parts too, but not all that trains (AdaLoRA's ``ranknum``).
    """
    children = [pair for module in layer.modules() for pair in module.named_children()]
    wrapped = [module for name, module in children if name in _WRAPPED]
    base = {id(parameter) for module in wrapped for parameter in module.parameters()}
    yield from (parameter for parameter in layer.parameters() if id(parameter) not in base)
