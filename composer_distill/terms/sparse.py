"""The distillation term from cached answers of which few classes a position are known."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.losses import DistillationLoss, KLDivergence
from composer_distill.losses.sparse import SparseTarget, sparse_distance
from composer_distill.losses.sparse_choice import check_sparse, outcomes_of, sparse_parts
from composer_distill.notes import noted
from composer_distill.teachers.cached import CachedTeacher
from composer_distill.teachers.found import CachedAnswers
from composer_distill.teachers.source import Source
from composer_distill.telemetry.values import entropy, is_classification
from composer_distill.terms.logits import LogitsTerm
from composer_distill.terms.protocol import Measured


class SparseTerm:
    """Measures the student's distance from what is known of its cached teachers.

    Args:
        logits: The term of whole logits of the same arguments, which reads the student.
        loss: One of the losses that few classes are enough for.
        weight: The term's weight, from the Trainer's state.

    Raises:
        ValueError: If the loss is none of these, or the answers of several teachers are to be one.
    """

    weight_name = "distillation/kd_loss_weight"
    listens = False

    def __init__(self, logits: LogitsTerm, loss: Any, weight: Callable[[State], float]) -> None:
        self.panel = logits.panel
        self.weight = weight
        self._logits = logits
        self._sources = _sparse_ones(self.panel.sources)
        answering = self.panel.n_sampled or len(self.panel.sources)
        if len(self._sources) < len(self.panel.sources) or answering > 1:
            raise ValueError(
                "teachers: cached answers of few classes can't be combined with others to one "
                f"target, and {answering} of {len(self.panel.sources)} teachers answer a batch. "
                "Give teachers of this kind alone and n_teachers_to_sample=1, or write caches of "
                "whole logits."
            )
        for teacher in self.panel.teachers:
            if isinstance(teacher, CachedTeacher):
                recipe = teacher.cache.manifest.recipe
                sampled = recipe.kind == "samples"
                check_sparse(loss, recipe.count or 1, teacher.tail, sampled=sampled)
        self._loss: DistillationLoss = loss

    def prepare(self, state: State) -> None:
        """Do what any term does at INIT."""
        self._logits.prepare(state)

    def start_forward(self, state: State) -> None:
        """Do nothing."""

    def end_forward(self) -> None:
        """Do nothing."""

    def check(self, batch: int) -> None:
        """Do nothing: only finite answers are kept."""

    def forget(self) -> None:
        """Forget what was noted of a batch."""
        self._logits.forget()

    def measure(self, state: State, view: Any, outputs: Any, *, trust_labels: bool) -> Measured:
        """Return the unweighted distillation loss of the microbatch, and values for the log.

        Args:
            state: The Trainer's state at AFTER_LOSS.
            view: The batch as the student saw it.
            outputs: The student's output, as its loss was given it.
            trust_labels: Not read: no teacher is judged by few classes.

        Raises:
            ValueError: If samples are not in the cache, its classes are not the student's, or the
                loss has another temperature.
        """
        with noted("kd_loss_fn", self._loss, " in a schedule"):
            self._loss.resolve(state)
        microbatch = self._logits.read(view, outputs, own_loss=state.loss)
        ((index, _),) = self.panel.draw(int(state.timestamp.batch))
        source = self._sources[index]
        target = self.panel.timed(source, source.sparse_target, microbatch, state)
        student = microbatch.compared.logits
        student = student.reshape(-1, student.shape[-1])
        if microbatch.empty:
            target = _stand_in(target, student)
        _check_fit(source.label, student, target)
        parts = sparse_parts(self._loss, student, target, source.teacher.tail)
        whole = microbatch.zero() if microbatch.empty else self._loss.combine(parts)
        values = {"loss/train/kd": whole.detach()}
        if len(parts) > 1:
            values |= {f"distillation/kd_loss/{n}": part.detach() for n, part in parts.items()}
        self._note(values, student.detach(), target, index)
        if microbatch.empty:
            values = {name: torch.zeros_like(value) for name, value in values.items()}
        return Measured(whole, values, microbatch.count)

    def _note(
        self, values: dict[str, Tensor], student: Tensor, target: SparseTarget, index: int
    ) -> None:
        """Note what the kept positions tell beside the loss; entropies where T is 1."""
        observer = self._logits.observer
        if not is_classification(student):
            return
        alike = student.argmax(-1) == target.best
        values["distillation/agreement"] = alike.mean(dtype=torch.float32)
        if observer is None:
            return
        observer.note_loss(values, index, values["loss/train/kd"])
        values["distillation/student_entropy"] = entropy(student)
        if target.temperature == 1.0:
            tail = self._sources[index].teacher.tail
            divergence = outcomes_of(KLDivergence(1.0), tail, sampled=target.sampled)
            values["distillation/kl"] = sparse_distance(student, target, divergence)
            values["distillation/teacher_entropy"] = target.entropy.mean()


def _sparse_ones(sources: Sequence[Source]) -> list[CachedAnswers]:
    return [x for x in sources if isinstance(x, CachedAnswers) and x.teacher.is_sparse]


def is_sparse(teachers: Any) -> bool:
    """Return whether few classes a position are known of any of the teachers."""
    return any(isinstance(one, CachedTeacher) and one.is_sparse for one in teachers)


def check_not_evaluated(eval_teachers: bool) -> None:
    """Refuse that teachers of whom few classes are known answer evaluation sets."""
    if eval_teachers:
        raise ValueError(
            "eval_teachers=True needs whole logits, and of the cached answers few classes are "
            "kept. Leave it out, or write a cache of whole logits."
        )


def _stand_in(target: SparseTarget, student: Tensor) -> SparseTarget:
    """Return what is known where no position counts: a first class that is certain."""
    one = student.new_zeros(1, 1)
    none = one.new_full((1,), -torch.inf)
    return SparseTarget(
        one.long(), one, none, one[0], student.shape[1], target.temperature, target.sampled
    )


def _check_fit(label: str, student: Tensor, target: SparseTarget) -> None:
    if student.shape[1] != target.classes:
        raise ValueError(
            f"{label}: its answers are over {target.classes} classes where the student has "
            f"{student.shape[1]}. Where the vocabulary is padded, write the cache with vocab_size= "
            "and pass the same to Distillation."
        )
    if len(student) != len(target.tail):
        raise ValueError(
            f"{label}: its answers have {len(target.tail)} positions where the student has "
            f"{len(student)}. Write the cache with the data that the student sees."
        )
