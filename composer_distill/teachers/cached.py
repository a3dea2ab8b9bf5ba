"""A teacher whose answers were kept in files: no model runs where they are found."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from composer.core import State
from torch import Tensor, nn

from composer_distill.caching.answers import Answers
from composer_distill.caching.few import join
from composer_distill.caching.reader import Cache
from composer_distill.losses.sparse import SparseTail, SparseTarget
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.outputs import LABEL_KEYS
from composer_distill.teachers.sharding import Sharding
from composer_distill.teachers.teacher import Teacher
from composer_distill.weights.wording import plain


class CachedTeacher:
    """A teacher whose answers :func:`.cache_teacher` kept: students train at their own price.

    An answer is found by the content of what the teacher read, never by its place in the data: a
    key is made of the values, types and shapes of a sample's tensors, padding left out. Shuffling,
    ``drop_last``, another batch size, more ranks or a resumed run can't misalign it. A sample that
    is not in the cache is an error, or is answered by ``teacher`` where one is given.

    Whole logits are a teacher's logits as any other's. Of answers of which the likeliest classes
    were kept, or draws, :class:`.KLDivergence` and some other losses can be computed, at the
    temperature that they were kept at.

    Args:
        folder: What ``cache_teacher`` wrote: a path, or the URI of an object store, of which each
            node downloads a shard once.
        teacher: The model that answers what is not in the cache; it must be the one that wrote it.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined (relative, positive).
        unfinished: Whether a cache that was not written to its end is read all the same.
        tail: What becomes of the classes that top-k left out: ``'bucket'``, one outcome, a true
            divergence; ``'uniform'``, all equally likely; ``'renormalise'``, none of them
            possible, which is biased and no divergence.

    Raises:
        FileNotFoundError: If there is no cache, or a shard of it is missing.
        ImportError: If the extra ``cache`` is not installed.
        ValueError: If it is damaged, unfinished, of a newer version, or of another teacher.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from composer_distill import CachedTeacher, cache_teacher
        >>> data = TensorDataset(torch.randn(8, 64), torch.randint(0, 10, (8,)))
        >>> folder = tempfile.mkdtemp()
        >>> _ = cache_teacher(nn.Linear(64, 10), DataLoader(data, batch_size=4), folder)
        >>> CachedTeacher(folder).cache.manifest.samples
        8
    """

    input_fn = None
    output_fn = None
    route = None
    answers_as_the_student = True

    def __init__(
        self,
        folder: str | Path,
        teacher: nn.Module | Teacher | None = None,
        *,
        name: str | None = None,
        weight: float = 1.0,
        unfinished: bool = False,
        tail: SparseTail = "bucket",
    ) -> None:
        self.folder = folder
        self.tail: SparseTail = tail
        self.name = name or f"cached in {Path(folder).name}"
        if isinstance(teacher, nn.Module):
            teacher = Teacher(teacher)
        self.teacher = teacher
        self.model: nn.Module = nn.Module() if teacher is None else teacher.model
        self.weight = Teacher(self.model, name=self.name, weight=weight).weight
        self.cache = Cache(folder, unfinished=unfinished)
        if teacher is not None:
            _check_same_teacher(self.cache, teacher)

    @property
    def is_sparse(self) -> bool:
        """Whether it knows few classes a position."""
        return self.cache.manifest.recipe.kind != "logits"

    @property
    def label(self) -> str:
        """What errors call it."""
        return f"teacher {self.name!r}"

    def identity(self) -> str:
        """Return whose answers these are, and which of them."""
        recipe = self.cache.manifest.recipe
        return f"answers of {plain(recipe.teacher)} ({recipe.kind}), {self.cache.identity()}"

    def former_identity(self) -> str:
        """Return the same: no older version kept answers."""
        return self.identity()

    def __repr__(self) -> str:
        return f"CachedTeacher({str(self.folder)!r}, {self.identity()})"


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
        self._cache = teacher.cache
        self._answers = Answers(teacher.cache)
        self._live = None if teacher.teacher is None else LiveTeacher(teacher.teacher, label)

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
            self._live.prepare(state, sharding)

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

    def _found(self, view: Any) -> tuple[list[Any] | None, Tensor | None]:
        """Return each sample's answer and where its positions are, None where one is missing."""
        found = self._answers.find(view, LABEL_KEYS)
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


def tokenizer_digest(model: nn.Module) -> str | None:
    """Return what tells the vocabulary of the tokenizer that a model carries from others'."""
    tokenizer: Any = getattr(getattr(model, "module", model), "tokenizer", None)
    if not callable(getattr(tokenizer, "get_vocab", None)):
        return None
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


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


def _check_same_teacher(cache: Cache, teacher: Teacher) -> None:
    kept, given = cache.manifest.recipe.teacher, teacher.identity()
    if kept != given:
        raise ValueError(
            f"{cache.folder} holds the answers of {plain(kept)}, but teacher is {given}. Give the "
            "model that wrote the cache, or leave it out."
        )


def _not_found(label: str, missing: int, of: int) -> str:
    return (
        f"{label}: {missing} of the {of} samples of this batch are not in the cache. Answers are "
        "found by what the teacher read, so that it was something else when they were written: "
        "another tokenizer, maximal length, collator or type; an augmentation that draws anew each "
        "epoch; or other data. Write these too with cache_teacher, or pass "
        "CachedTeacher(folder, teacher=model), which answers them."
    )
