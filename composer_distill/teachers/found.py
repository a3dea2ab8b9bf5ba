"""A cache at work in a Trainer: what it holds of a microbatch, at the positions that count."""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.caching.answers import Answers
from composer_distill.caching.few import join
from composer_distill.losses.sparse import SparseTarget
from composer_distill.teachers.ahead import Ahead
from composer_distill.teachers.cached import CachedTeacher, tokenizer_digest
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.outputs import LABEL_KEYS
from composer_distill.teachers.packed import always_reads_over, holds_packed, reads_over_borders
from composer_distill.teachers.sharding import Sharding

_log = logging.getLogger(__name__)


class CachedAnswers:
    """A source of targets that finds them in a cache.

    Args:
        teacher: The cache and its options.
        label: What errors and logs call it in this run.
    """

    def __init__(self, teacher: CachedTeacher, label: str) -> None:
        self.teacher = teacher
        self.label = label
        self.weight = teacher.weight
        self.window = teacher.window
        self._cache = teacher.cache
        self._answers = Answers(teacher.cache)
        self._ahead = Ahead(partial(self._answers.find, label_keys=LABEL_KEYS))
        self._live = None if teacher.teacher is None else LiveTeacher(teacher.teacher, label)
        self._told = False

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Compare the student's tokenizer with that of the answers, and place the live teacher."""
        tokenizer = tokenizer_digest(state.model)
        kept = self._cache.manifest.recipe.tokenizer
        if tokenizer is not None and kept is not None and tokenizer != kept:
            raise ValueError(
                f"{self.label}: its answers were given to another tokenizer's tokens than the "
                "student's. Train a student with the tokenizer of the teacher, or write a cache of "
                "a teacher that has the student's."
            )
        if self._live is not None:
            # Cut over the ranks it would wait for those that found all of their samples
            self._live.prepare(state, "replicated")

    def look_ahead(self, batch: Any) -> None:
        """Begin to find and read the answers to a batch, in a thread."""
        self._ahead.begin(batch)

    def forget(self) -> None:
        """Keep nothing of what was begun."""
        self._ahead.forget()

    def settle(self) -> None:
        """Bring the live teacher back to the device, if there is one."""
        if self._live is not None:
            self._live.settle()

    def leave(self) -> None:
        """Free the device of the live teacher, if there is one."""
        if self._live is not None:
            self._live.leave()

    def target(self, microbatch: Microbatch, state: State) -> Tensor:
        """Return the answers that were kept, at the positions that count.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.

        Raises:
            ValueError: If samples are not in the cache and there is no live teacher, or a position
                counts at which none was kept.
        """
        self._tell_of_packed(microbatch.view, state)
        answers, mask = self._found(microbatch.view)
        if answers is None:
            return self._asked(microbatch, state)
        if self._cache.manifest.by_position:
            answer = _at_positions(answers, mask, microbatch, self.label)
        else:
            answer = _stacked(answers, self.label)
        return answer.to(microbatch.logits.device, non_blocking=True)

    def sparse_target(self, microbatch: Microbatch, state: State) -> SparseTarget:
        """Return what is known of the teacher at the positions that count; see :meth:`target`."""
        self._tell_of_packed(microbatch.view, state)
        kept, mask = self._found(microbatch.view)
        if kept is None:
            every = replace(microbatch, mask=None)
            logits = self._asked(every, state).cpu()
            kept, mask = self._answers.of(logits, microbatch.view, LABEL_KEYS)
        by_position = self._cache.manifest.by_position
        numbers = _numbers(
            [len(one.tail) for one in kept], mask, microbatch, by_position, self.label
        )
        target = join(kept)
        if numbers is not None:
            target = target.map(lambda tensor: tensor[numbers])
        device = microbatch.logits.device
        return target.map(lambda tensor: tensor.to(device, non_blocking=True))

    def _tell_of_packed(self, view: Any, state: State) -> None:
        """Warn once where the student reads over borders of texts that the teacher kept apart."""
        if self._told:
            return
        if reads_over_borders(state.model, view, state.outputs) and holds_packed(view):
            self._told = True
            caches = always_reads_over(state.model, view) is None
            _log.warning(
                "%s: position_ids begin anew within a row, where its answers were written in a "
                "forward that keeps packed texts apart, if the model can; the student %s",
                self.label,
                "reads over their borders, since it makes a cache. Set student.config.use_cache = "
                "False."
                if caches
                else "always reads over their borders. Have the collator give an attention_mask of "
                "ones, in writing and in training.",
            )

    def _found(self, view: Any) -> tuple[list[Any] | None, Tensor | None]:
        """Return each sample's answer and where its positions are, None where one is missing."""
        found = self._ahead.take(view)
        if not found.missing:
            return found.answers, found.mask
        if self._live is None:
            raise ValueError(_not_found(self.label, found.missing, found.samples))
        return None, None

    def _asked(self, microbatch: Microbatch, state: State) -> Tensor:
        """Return the live teacher's logits."""
        if self._live is None:
            raise RuntimeError("there is no live teacher to ask")
        return self._live.target(microbatch, state)


def _stacked(answers: list[Tensor], label: str) -> Tensor:
    shapes = {tuple(answer.shape) for answer in answers}
    if len(shapes) > 1:
        raise ValueError(
            f"{label}: the answers to this batch's samples have unlike shapes "
            f"({', '.join(map(str, sorted(shapes)))}). Use batches of samples of one size."
        )
    return torch.stack(answers)


def _at_positions(
    answers: list[Tensor], mask: Tensor | None, microbatch: Microbatch, label: str
) -> Tensor:
    """Return answers at the positions that count alone, or at all, zeros at padding."""
    counts = [len(answer) for answer in answers]
    joined = torch.cat(answers)
    if microbatch.head_mask is None:
        mask = _answered(counts, mask, microbatch, label)
        whole = joined.new_zeros(*mask.shape, joined.shape[-1])
        whole[mask] = joined
        return whole
    numbers = _numbers(counts, mask, microbatch, True, label)
    return joined[numbers].unsqueeze(0)


def _numbers(
    counts: list[int],
    mask: Tensor | None,
    microbatch: Microbatch,
    by_position: bool,
    label: str,
) -> Tensor | None:
    """Return which of a batch's answered positions, one after another, count; None for all."""
    kept = None if microbatch.mask is None else microbatch.mask.cpu()
    if not by_position:
        return None if kept is None else kept.reshape(-1).nonzero().squeeze(1)
    mask = _answered(counts, mask, microbatch, label)
    kept = torch.ones_like(mask) if kept is None else kept
    unanswered = int((kept & ~mask).sum())
    if unanswered:
        raise ValueError(
            f"{label}: {unanswered} positions of the batch count that are padding, where no answer "
            "is kept. With padding on the left the position before a text predicts its first "
            "token: pass mask_fn=attended_positions, or give that token the label -100."
        )
    return (mask.reshape(-1).cumsum(0) - 1)[kept.reshape(-1)]


def _answered(counts: list[int], mask: Tensor | None, microbatch: Microbatch, label: str) -> Tensor:
    """Return where in the student's positions the answers are."""
    if mask is None:
        mask = torch.ones(microbatch.logits.shape[:2], dtype=torch.bool)
    if mask.sum(1).tolist() != counts:
        raise ValueError(
            f"{label}: the answers have {counts} positions where the samples have "
            f"{mask.sum(1).tolist()}. Write the cache with the student's collator."
        )
    return mask


def _not_found(label: str, missing: int, of: int) -> str:
    return (
        f"{label}: {missing} of the {of} samples of this batch are not in the cache. Answers are "
        "found by what the teacher read, so that it was something else when they were written: "
        "another tokenizer, maximal length, collator or type; packed texts with a mask or without; "
        "an augmentation that draws anew each epoch; or other data. Write these too with "
        "cache_teacher, or pass CachedTeacher(folder, teacher=model), which answers them."
    )
