"""A term of features at work: measured for each microbatch of a Trainer."""

import copy
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import torch
from composer.core import State
from composer.utils import dist
from torch import Tensor, nn

from composer_distill.losses import DistillationLoss, FeatureLoss
from composer_distill.schedule import Window
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.terms.features.companions import Companions, build_projector
from composer_distill.terms.features.exchange import Exchange
from composer_distill.terms.features.huggingface import read_layers
from composer_distill.terms.features.layers import Layer, pairs_of
from composer_distill.terms.features.masks import kept_rows, mask_for, telling
from composer_distill.terms.features.term import FeatureTerm
from composer_distill.terms.guard import FiniteGuard
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.protocol import Measured

_log = logging.getLogger(__name__)


class HasWindow(Protocol):
    """Whoever has the window within which terms act."""

    window: Window


class MatchingTerm:
    """Compares layers of the student with layers of the drawn teachers.

    Args:
        term: What is compared.
        name: What the log calls it.
        exchange: Listens to the student and the teachers.
        outer: Has the window of ``Distillation``.
        companions: Keeps what trains beside the student.
    """

    listens = True

    def __init__(
        self,
        term: FeatureTerm,
        name: str,
        exchange: Exchange,
        outer: HasWindow,
        companions: Companions,
    ) -> None:
        self.term = term
        self.name = name
        self.weight_name = f"distillation/feature_weight/{name}"
        self.guard = FiniteGuard("choose other layers.", what="features")
        self._exchange = exchange
        self._companions = companions
        self._loss: Any = term.loss  # its own copy where it trains
        self._outer = outer
        self._model: nn.Module | None = None  # whose layers these are
        self._pairs: list[list[tuple[Layer, Layer]]] = []  # for each teacher
        self._told = False

    def weight(self, state: State) -> float:
        """Return the term's weight now, 0 outside of its own window."""
        return self.term.weight_within(self._outer.window, state)

    def prepare(self, state: State) -> None:
        """Find the layers by their names, at INIT.

        Raises:
            TypeError: If a teacher has no layers.
            ValueError: If a layer is unknown, or numbers of layers differ.
        """
        self._exchange.prepare()
        self._find(state.model)
        for pairs, label in zip(self._pairs, self._exchange.panel.labels, strict=True):
            text = ", ".join(f"{ours.name} -> {theirs.name}" for ours, theirs in pairs)
            _log.info("feature term %r matches the student with %s: %s", self.name, label, text)
        self._model = None  # which may be wrapped, or changed by other algorithms, from here on
        self._loss = self.term.loss
        if isinstance(self._loss, nn.Module):
            self._loss = copy.deepcopy(self._loss)  # each run begins with what was given
            state.device.module_to_device(self._loss)

    def start_forward(self, state: State) -> None:
        """BEFORE_FORWARD: begin to listen, if the term acts in this batch."""
        if self.weight(state) == 0.0:
            return
        if state.model is not self._model:
            self._find(state.model)
        ours = [layer for layer, _ in self._pairs[0]]
        theirs = [[layer for _, layer in pairs] for pairs in self._pairs]
        self._exchange.listen(self, ours, theirs)

    def end_forward(self) -> None:
        """AFTER_FORWARD: listen to the student no more."""
        self._exchange.stop()

    def check(self, batch: int) -> None:
        """Raise ValueError where a teacher's features of the batch held NaN or infinity."""
        self.guard.check(batch)

    def forget(self) -> None:
        """Listen no more, and keep nothing of a batch."""
        self.guard.forget()
        self._exchange.forget()

    def measure(self, state: State, view: Any, outputs: Any, *, trust_labels: bool) -> Measured:
        """Return the term's unweighted value, and values for the log.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            outputs: The student's output, as its loss was given it.
            trust_labels: Not read: no labels are.

        Raises:
            TypeError: If a layer gave no tensor, or the loss returns none.
            ValueError: If what was heard of a layer misleads, or has no gradient path.
        """
        if isinstance(self._loss, DistillationLoss):
            self._loss.resolve(state)
        self._tell_of_cut_batches(state)
        total: Tensor | None = None
        mask: Tensor | None = None
        for share, ours, theirs, mask in self._features(state, view, outputs):
            value = share * self._distance(ours, theirs, mask)
            total = value if total is None else total + value
        self._exchange.done(self)
        if total is None:
            raise RuntimeError(f"feature term {self.name!r} has no layers to compare.")
        positions = None if mask is None else int(mask.sum())
        return Measured(total, {f"distillation/features/{self.name}": total.detach()}, positions)

    def _features(
        self, state: State, view: Any, outputs: Any
    ) -> Iterator[tuple[float, Any, Any, Tensor | None]]:
        """Yield share, student's and teacher's features and mask, of each teacher and pair."""
        panel = self._exchange.panel
        for index, share in panel.draw(int(state.timestamp.batch)):
            for ours, theirs in self._pairs[index]:
                student = self._exchange.of_student(ours, state.model, outputs)
                first = student if isinstance(student, Tensor) else student[0]
                _check_gradient_path(first, ours.name)
                microbatch = Microbatch(view, outputs, first)
                teacher = self._exchange.of_teacher(index, theirs, microbatch, state)
                mask = mask_for(self.term.mask_fn, view, outputs, student, ours.name)
                for tensor in (teacher,) if isinstance(teacher, Tensor) else teacher:
                    self.guard.note(panel.labels[index], telling(tensor, mask))
                key = f"{self.name}/teacher {index}/{ours.name}"
                yield share, self._projected(student, teacher, key), teacher, mask

    def _projected(self, student: Any, teacher: Any, key: str) -> Any:
        """Return the student's features in the teacher's width."""
        kind = self.term.projector
        if kind is None:
            return student
        make = partial(build_projector, kind, student, teacher, key)
        module = self._companions.take(key, make)
        like = next((p for p in module.parameters()), student)
        return module(student.to(like.dtype))

    def _distance(self, student: Any, teacher: Any, mask: Tensor | None) -> Tensor:
        """Return the loss of one pair, a scalar."""
        loss = self._loss
        if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
            self._companions.take(f"{self.name}/loss", lambda: _sized(loss, student, teacher, mask))
        if isinstance(loss, (FeatureLoss, DistillationLoss)):
            value = loss(student, teacher, mask)
        else:
            pair = kept_rows((student, teacher), mask, self.name)
            value = loss(*(x.to(torch.promote_types(x.dtype, torch.float32)) for x in pair))
        if not isinstance(value, Tensor) or not value.requires_grad:
            came = type(value).__name__ if not isinstance(value, Tensor) else "one without gradient"
            raise TypeError(
                f"feature term {self.name!r}: its loss must return a tensor with a gradient path "
                f"to the student's features, got {came}. It is called as loss(student, teacher)."
            )
        return value.mean() if value.ndim else value

    def _find(self, model: nn.Module) -> None:
        """Find the layers of the student and of each teacher."""
        term, panel = self.term, self._exchange.panel
        ours = read_layers(model, term.student, term.of, "the student")
        self._pairs = []
        for teacher, label in zip(panel.teachers, panel.labels, strict=True):
            theirs = read_layers(teacher.model, term.teacher, term.of, label)
            self._pairs.append(pairs_of(ours, theirs, term.teacher))
        self._model = model

    def _tell_of_cut_batches(self, state: State) -> None:
        """Note once that a loss that relates samples sees a part of the batch alone."""
        if self._told or not getattr(self.term.loss, "relates_samples", False):
            return
        size, batch = state.device_train_microbatch_size, _samples(state)
        cut = dist.get_world_size() > 1 or (size is not None and batch is not None and size < batch)
        if cut:
            self._told = True
            _log.warning(
                "feature term %r relates the samples of a microbatch to each other; the batch is "
                "cut into microbatches or over ranks, so its value is not that of the whole batch.",
                self.name,
            )


def matching_terms(
    terms: Sequence[FeatureTerm], panel: TeacherPanel, outer: HasWindow, companions: Companions
) -> list[MatchingTerm]:
    """Return the terms at work; of one name the second is called ``_2``.

    Args:
        terms: What the user asks for.
        panel: The teachers.
        outer: Has the window of ``Distillation``.
        companions: Keeps what trains beside the student.
    """
    exchange = Exchange(panel)
    names: list[str] = []
    for term in terms:
        same = sum(earlier.name == term.name for earlier in terms[: len(names)])
        names.append(f"{term.name}_{same + 1}" if same else term.name)
    return [
        MatchingTerm(term, name, exchange, outer, companions)
        for term, name in zip(terms, names, strict=True)
    ]


def _sized(loss: nn.Module, student: Any, teacher: Any, mask: Tensor | None) -> nn.Module:
    """Return a loss whose parameters have their shapes, which the first call may give them."""
    with torch.no_grad():
        loss(student, teacher, mask)
    return loss


def _samples(state: State) -> int | None:
    """Return how many samples the batch of this rank has, as its dataloader tells."""
    size = getattr(state.dataloader, "batch_size", None)
    return size if isinstance(size, int) else None


def _check_gradient_path(features: Tensor, layer: str) -> None:
    if not features.requires_grad:
        raise ValueError(
            f"the student: what the layer {layer!r} gave has no gradient path, so the term would "
            "train nothing: the layer is frozen, or runs inside of reentrant activation "
            "checkpointing. Name the checkpointed block itself, or use use_reentrant=False."
        )
