"""A frozen model, ready to answer the student's batches."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from composer.core import Time
from torch import Tensor, nn

from composer_distill.notes import noted
from composer_distill.schedule import Weight
from composer_distill.teachers.arguments import (
    checked_callable,
    checked_dtype,
    checked_size,
    checked_weight,
    checked_window,
    refuse_options,
)
from composer_distill.teachers.huggingface import (
    build_from_composer,
    build_pretrained,
    reduced_type,
)
from composer_distill.teachers.modes import any_trains
from composer_distill.teachers.placement import move, on_device, pin
from composer_distill.teachers.splitting import map_tensors, shallow_copy, split
from composer_distill.teachers.streams import untouched_streams
from composer_distill.weights.checkpoint import load_weights
from composer_distill.weights.errors import without_secrets
from composer_distill.weights.fingerprint import fingerprint
from composer_distill.weights.sampled import sampled_fingerprint

log = logging.getLogger(__name__)

Forward = Callable[..., Any]
Extract = Callable[[Any], Tensor]


class Teacher:
    """A model that teaches, with its options. Deliberately no ``nn.Module``: nothing may adopt it.

    Its weights are loaded here, so that a file that is missing, unsafe or of another model is an
    error before anything else happens. In a run of several processes each process loads them;
    what has to be downloaded is downloaded once on each node.

    Args:
        model: A ``ComposerModel``, a plain ``nn.Module`` or a Hugging Face model.
        checkpoint: Where to load its weights from, or None to keep those that it has.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined (relative, positive), or a schedule of
            it, any callable of the Trainer's ``State``; while it is 0 the teacher does not answer.
        start_dur: First moment at which it answers, inside the window of ``Distillation``: as there
            a fraction of training, a Composer time string or a ``Time``.
        end_dur: First moment at which it no longer answers; then it leaves the device.
        route: Which samples it answers: any ``batch -> (B,) bool tensor``, on the batch as the
            student saw it. It reads those alone. None: all, or what ``route_by`` of
            ``Distillation`` says.
        input_fn: Maps the student's batch to the teacher's own view of it: other normalisation,
            resolution or keys. It gets a copy whose containers are its own; the tensors are not.
        output_fn: Maps the teacher's raw output to one over the student's classes.
        dtype: The type of its weights, and of the floating-point tensors that it is given.
        compile: Whether to compile it, or the options of ``torch.compile`` to do so with. Done in
            place, at the first placement.
        offload: Whether its weights wait in host memory between batches.
        microbatch_size: How many samples it reads at a time; None for all.
        strict: Whether the checkpoint must fit in every key.
        ema: Which weights of a checkpoint of Composer's ``EMA``; see ``load_weights``.

    Raises:
        FileNotFoundError: If there is nothing at ``checkpoint``.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument has no sense, or the checkpoint is refused.

    Example:
        >>> teacher = Teacher(nn.Linear(2, 3), output_fn=lambda logits: logits[:, :2])
        >>> teacher.freeze()
        >>> run = lambda model, batch: model(batch)
        >>> tuple(teacher.forward(torch.zeros(4, 2), run, lambda logits: logits).shape)
        (4, 2)
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        checkpoint: str | Path | None = None,
        name: str | None = None,
        weight: Weight = 1.0,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        route: Callable[[Any], Tensor] | None = None,
        input_fn: Callable[[Any], Any] | None = None,
        output_fn: Callable[[Any], Any] | None = None,
        dtype: torch.dtype | None = None,
        compile: bool | Mapping[str, Any] = False,
        offload: bool = False,
        microbatch_size: int | None = None,
        strict: bool = True,
        ema: bool | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, but is a {type(model).__name__}")
        self.model = model
        self.name = name
        self.checkpoint = checkpoint
        self.weight = checked_weight(weight, self.label)
        self.window = checked_window(start_dur, end_dur, self.label)
        self.route = checked_callable(route, "route", self.label)
        self.input_fn = checked_callable(input_fn, "input_fn", self.label)
        self.output_fn = checked_callable(output_fn, "output_fn", self.label)
        self.dtype = checked_dtype(dtype, self.label)
        self.microbatch_size = checked_size(microbatch_size, self.label)
        self.compile = compile
        self.offload = offload
        self._device = torch.device("cpu")
        self._compiled = False
        if checkpoint is not None:
            with untouched_streams():
                load_weights(model, checkpoint, name=self.label, strict=strict, ema=ema)
            log.info("%s is %r", self.label, self)

    @classmethod
    def from_pretrained(cls, folder_or_name: str | Path, **options: Any) -> "Teacher":
        """Build a teacher from a Hugging Face folder or name, with the weights that it holds.

        They keep the type that they have there. Where all have one type other than float32, such
        as bfloat16, that is the teacher's ``dtype``, unless you give another.

        Args:
            folder_or_name: What ``save_pretrained`` wrote, or a name on the hub.
            **options: The options of a Teacher, without ``checkpoint`` and ``ema``.

        Raises:
            FileNotFoundError: If there is no such folder.
            ValueError: If it does not tell which class of transformers it is, or lacks weights.
        """
        refuse_options(options, ("checkpoint", "ema"), "from_pretrained")
        strict = options.get("strict", True)
        name = options.get("name") or "from_pretrained"
        model = build_pretrained(folder_or_name, strict=strict, name=name)
        teacher = cls(model, **{"dtype": reduced_type(model), **options})
        teacher.checkpoint = folder_or_name
        log.info("%s is %r", teacher.label, teacher)
        return teacher

    @classmethod
    def from_composer_checkpoint(cls, path: str | Path, **options: Any) -> "Teacher":
        """Build the ``HuggingFaceModel`` of a Composer checkpoint, with the checkpoint's weights.

        Args:
            path: The checkpoint: a path, or the URI of an object store.
            **options: The options of a Teacher, without ``checkpoint``.

        Raises:
            FileNotFoundError: If there is nothing at ``path``.
            ValueError: If it stores no configuration of a class of transformers, or is refused.
        """
        refuse_options(options, ("checkpoint",), "from_composer_checkpoint")
        name = options.get("name") or f"teacher ({Path(without_secrets(path)).name})"
        return cls(build_from_composer(path, name=name), checkpoint=path, **options)

    @property
    def label(self) -> str:
        """What errors call it, its name or its class where it has none."""
        if not self.name:
            return f"teacher ({type(self.model).__name__})"
        return self.name if self.name.startswith("teacher") else f"teacher {self.name!r}"

    @property
    def answers_as_the_student(self) -> bool:
        """Whether it reads the student's batch whole and its output is taken as it comes."""
        mapped = (self.input_fn, self.output_fn, self.microbatch_size)
        return all(option is None for option in mapped)

    def freeze(self) -> None:
        """Turn gradients off and evaluation mode on.

        Raises:
            TypeError: If the model has no evaluation mode, as one from ``torch.export`` has none.
        """
        try:
            self.model.eval()
        except NotImplementedError as error:
            raise TypeError(
                f"{self.label}: model must have an evaluation mode, but eval() of a "
                f"{type(self.model).__name__} says: {error} Pass the module that it was made from."
            ) from error
        for parameter in self.model.parameters():  # a TorchScript module has no requires_grad_()
            parameter.requires_grad_(False)

    def place(self, device: torch.device) -> None:
        """Cast the weights, move them, and compile the model, the first time.

        Args:
            device: Where the student trains. An offloaded teacher's weights stay in host memory
                and visit the device for each batch.

        Raises:
            ValueError: If the model refuses to be moved or cast, as some quantised ones do.
        """
        self._device = device
        home = torch.device("cpu") if self.offload else device
        move(self.model, home, self.dtype, self.label)
        if self.offload and device.type == "cuda":
            pin(self.model)
        if self.compile and not self._compiled:
            self.model.compile(**(self.compile if isinstance(self.compile, Mapping) else {}))
            self._compiled = True

    def to_host(self) -> None:
        """Move the weights to host memory, for when no batch will come any more."""
        self.model.to("cpu")
        log.info("%s was moved to host memory", self.label)

    def forward(self, batch: Any, call: Forward, extract: Extract) -> Tensor:
        """Answer a batch, which stays as it is.

        Args:
            batch: The student's batch.
            call: Runs a model on this teacher's view of a batch and gives its raw output.
            extract: Takes the logits out of a raw output, after ``output_fn``.

        Raises:
            ValueError: If the batch cannot be cut into pieces of ``microbatch_size``.
        """
        if any_trains(self.model):  # at each use: whoever holds the model may have called train()
            self.model.eval()
        view = self._view(batch)
        pieces = () if self.microbatch_size is None else split(view, self.microbatch_size)
        with on_device(self.model, self._device) if self.offload else nullcontext():
            if self.microbatch_size is None:
                return self._answer(view, call, extract)
            # A model may answer in the same memory each time, as a replayed CUDA graph does
            answers = [self._answer(piece, call, extract).clone() for piece in pieces]
        return answers[0] if len(answers) == 1 else torch.cat(answers)

    def fingerprint(self) -> str:
        """Twelve letters that tell its weights from others', down to the last byte.

        It reads all of them, where they lie, in about twice the time of a sum. The letters of a
        sharded teacher need every rank to ask. A model without weights gives ``'no weights'``, or
        the letters of what its ``get_extra_state()`` returns, if that is plain data.

        Raises:
            ValueError: If a weight is of a kind whose bytes can't be read.
        """
        try:
            return fingerprint(self.model)
        except ValueError as error:
            raise ValueError(f"{self.label}: {error}") from error

    def identity(self) -> str:
        """Return who it is, wherever its weights came from: class, size and fingerprint."""
        return self._identity(self.fingerprint())

    def former_identity(self) -> str:
        """Return who it is as versions wrote it whose fingerprint saw 64 values of a weight."""
        try:
            return self._identity(sampled_fingerprint(self.model))
        except Exception:  # whatever stopped those versions at this kind of weight
            return self._identity("unknown")

    def _identity(self, mark: str) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        return f"{type(self.model).__name__}, {count:,} parameters, {mark}"

    def __repr__(self) -> str:
        parameters = list(self.model.parameters())
        types = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
        count = sum(parameter.numel() for parameter in parameters)
        source = "its own weights" if self.checkpoint is None else without_secrets(self.checkpoint)
        return (
            f"Teacher({type(self.model).__name__}, {count:,} parameters, "
            f"{'+'.join(types) or 'no weights'}, from {source}, fingerprint {self.fingerprint()})"
        )

    def _view(self, batch: Any) -> Any:
        view = shallow_copy(batch)
        if self.input_fn is not None:
            with noted("input_fn", self.input_fn):
                view = self.input_fn(view)
        if self.dtype is not None:
            dtype = self.dtype
            view = map_tensors(view, lambda x: x.to(dtype) if x.is_floating_point() else x)
        return view

    def _answer(self, view: Any, call: Forward, extract: Extract) -> Tensor:
        raw = call(self.model, view)
        if self.output_fn is not None:
            with noted("output_fn", self.output_fn):
                raw = self.output_fn(raw)
        return extract(raw)
