"""A teacher whose answers were kept in files: no model runs where they are found."""

import hashlib
import json
from pathlib import Path
from typing import Any

from composer.core import Time
from torch import nn

from composer_distill.caching.manifest import same_teacher
from composer_distill.caching.reader import Cache
from composer_distill.losses.sparse import SparseTail
from composer_distill.schedule import Weight
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
            It is whole on every rank: one may lack samples where others do not.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined (relative, positive), or a schedule of
            it, as of a :class:`.Teacher`.
        start_dur: First moment at which it answers, inside the window of ``Distillation``.
        end_dur: First moment at which it no longer answers.
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
        >>> import torch
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
        weight: Weight = 1.0,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
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
        options = Teacher(
            self.model, name=self.name, weight=weight, start_dur=start_dur, end_dur=end_dur
        )
        self.weight, self.window = options.weight, options.window
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


def tokenizer_digest(model: nn.Module) -> str | None:
    """Return what tells the vocabulary of the tokenizer that a model carries from others'."""
    tokenizer: Any = getattr(getattr(model, "module", model), "tokenizer", None)
    if not callable(getattr(tokenizer, "get_vocab", None)):
        return None
    tokens = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(tokens.encode()).hexdigest()[:16]


def _check_same_teacher(cache: Cache, teacher: Teacher) -> None:
    kept, given = cache.manifest.recipe.teacher, teacher.identity()
    if not same_teacher(kept, given):
        raise ValueError(
            f"{cache.folder} holds the answers of {plain(kept)}, but teacher is {given}. Give the "
            "model that wrote the cache, or leave it out."
        )
