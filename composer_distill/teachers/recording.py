"""A teacher's answers to a data set, written to files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from composer.core import DataSpec, Precision, State
from composer.devices import Device
from composer.utils import dist, get_device
from torch import Tensor, nn

from composer_distill.caching.answers import encode
from composer_distill.caching.keys import Read, read_batch
from composer_distill.caching.manifest import Manifest, Recipe
from composer_distill.caching.writer import SHARD_BYTES, PartWriter
from composer_distill.losses.checks import check_temperature
from composer_distill.teachers.cached import tokenizer_digest
from composer_distill.teachers.class_names import names_of
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.outputs import LABEL_KEYS, names_lacked, names_read
from composer_distill.teachers.parts import Asked, check_can_be_cut, cut, in_step, written
from composer_distill.teachers.passes import passes, share, shown_share
from composer_distill.teachers.teacher import Teacher


def cache_teacher(
    teacher: nn.Module | Teacher,
    data: Any,
    folder: str | Path,
    *,
    top_k: int | None = None,
    samples: int | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    vocab_size: int | None = None,
    precision: str = "fp32",
    device: str | Device | None = None,
    views: int | None = None,
    sharded: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress_bar: bool = False,
) -> Manifest:
    """Let a teacher answer a data set once, and keep the answers for :class:`.CachedTeacher`.

    The teacher runs as it does in training: in eval mode, without gradients, with its own
    ``input_fn``, ``output_fn`` and ``microbatch_size``. Padding is not kept. Under Composer's
    launcher each process answers its share of the data and writes a folder of its own. A run that
    was killed goes on where it stopped when the same call is made again, and loses no more than
    the last shard.

    Args:
        teacher: A model, or a :class:`.Teacher` with options.
        data: A ``DataLoader``, a ``DataSpec`` or any iterable of batches, one epoch of it. A loader
            without a distributed sampler is shared out batch by batch.
        folder: Where the answers go.
        top_k: How many of the likeliest classes to keep at each position; None for all.
        samples: How many classes to draw at each position; None for none. An unbiased estimate of
            the whole, in a fraction of top-k's room.
        temperature: Of the likeliest classes or the draws: students train at this one alone. Whole
            logits serve any.
        seed: Seed of the draws.
        dtype: The type to keep; None for that of the answers, and float16 for log-probabilities of
            the likeliest classes.
        vocab_size: How many of the classes are real; None: all.
        precision: What the teacher computes in: ``'fp32'``, ``'amp_bf16'`` or ``'amp_fp16'``.
        device: ``'cpu'``, ``'gpu'``, ...; None: a GPU where there is one.
        views: How many views of each sample to answer, where the data set is augmented by a
            function of sample and view: its ``set_view(view)`` is called before each pass. Any
            other augmentation draws anew whenever it is asked, so that no answer would be found.
        sharded: Whether the teacher is cut over the processes, by FSDP2: for one that is too large
            for a single device. It stays cut. Every process then asks it as often as any other.
        shard_bytes: How much is gathered before it is written: what a killed run may lose.
        progress_bar: Whether to show how far it is, how fast and how large.

    Returns:
        What is in the cache.

    Raises:
        FileExistsError: If the folder holds something else.
        ImportError: If the extra ``cache`` is not installed.
        OSError: If the disk is full; what was written stays.
        RuntimeError: If another process writes the folder.
        ValueError: If an argument is out of its range, the folder holds another teacher's answers,
            or an answer is not finite.

    Example:
        >>> import tempfile
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.randn(8, 64), torch.randint(0, 10, (8,)))
        >>> loader = DataLoader(data, batch_size=4)
        >>> cache_teacher(nn.Linear(64, 10), loader, tempfile.mkdtemp()).positions
        8
    """
    teacher = teacher if isinstance(teacher, Teacher) else Teacher(teacher)
    kind, count = _kind(top_k, samples, views)
    temperature = check_temperature(temperature)
    state = _state(teacher, precision, device, sharded)
    recipe = Recipe(
        kind=kind,
        count=count,
        temperature=None if kind == "logits" else temperature,
        seed=seed if kind == "samples" else None,
        dtype=None if dtype is None else _name(dtype),
        vocab_size=vocab_size,
        **_told_by(teacher),
    )
    live = LiveTeacher(teacher, teacher.label)
    live.prepare(state, "sharded" if sharded else "replicated")

    def fill(writer: PartWriter) -> None:
        for passed in passes(data, views):
            _answer_all(live, passed, state, recipe, writer, progress_bar)

    return written(Path(folder).expanduser(), recipe, shard_bytes, fill)


def _told_by(teacher: Teacher) -> dict[str, Any]:
    """Return who answers, by which tokens, and what the classes are called."""
    names = None if teacher.output_fn is not None else names_of(teacher.model)
    return {
        "teacher": teacher.identity(),
        "tokenizer": tokenizer_digest(teacher.model),
        "labels": None if names is None else tuple(names),
    }


def _kind(top_k: int | None, samples: int | None, views: int | None) -> tuple[str, int | None]:
    """Return what is kept, and how much of it."""
    if top_k is not None and samples is not None:
        raise ValueError(
            f"top_k={top_k} and samples={samples} are two kinds of answers. Give one of them."
        )
    if views is not None:
        _checked("views", views, "8")
    for name, number in (("top_k", top_k), ("samples", samples)):
        if number is None:
            continue
        return name, _checked(name, number, "50")
    return "logits", None


def _checked(name: str, number: Any, one: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {number!r}. Try {one}.")
    return number


def _check_precision(precision: str) -> None:
    try:
        Precision(precision)
    except ValueError as error:
        raise ValueError(
            f"precision must be 'fp32', 'amp_bf16' or 'amp_fp16', got {precision!r}. Composer "
            "calls them so."
        ) from error


class _Answer(NamedTuple):
    """What a teacher says of one sample: ``(K, C)`` where it is by position, else whole."""

    logits: Tensor
    by_position: bool


def _state(teacher: Teacher, precision: str, device: str | Device | None, sharded: bool) -> State:
    """Return the state of no Trainer, as far as a teacher at work reads it."""
    check_can_be_cut(teacher, sharded)
    where = get_device(device)
    _check_precision(precision)
    if dist.get_world_size() > 1:
        dist.initialize_dist(where)
    return State(
        model=teacher.model,
        rank_zero_seed=0,
        run_name="cache_teacher",
        device=where,
        precision=precision,
        parallelism_config=cut() if sharded else None,
    )


def _answer_all(
    live: LiveTeacher,
    data: Any,
    state: State,
    recipe: Recipe,
    writer: PartWriter,
    progress_bar: bool,
) -> None:
    loader = data.dataloader if isinstance(data, DataSpec) else data
    shown = shown_share(loader, writer) if progress_bar else share(loader)
    asked = (_asked(batch, live.teacher, data, state, writer) for batch in shown)
    for one in in_step(asked) if state.fsdp_config is not None else asked:
        if not (one.lacking.any() or one.for_others):
            continue
        answers = _answers(live, one.view, one.read, state, recipe)
        for index in np.flatnonzero(one.lacking).tolist():
            _keep(writer, recipe, one, index, answers[index])


def _asked(batch: Any, teacher: Teacher, data: Any, state: State, writer: PartWriter) -> Asked:
    """Return a batch, and which of its samples the cache lacks."""
    view = _on_device(batch, data, state)
    fields = None if teacher.input_fn is not None else names_read(teacher.model, view)
    read = read_batch(view, fields, LABEL_KEYS)
    lacked = names_lacked(teacher.model, fields)
    return Asked(view, read, fields, lacked, writer.lacks(read.keys))


def _keep(writer: PartWriter, recipe: Recipe, asked: Asked, index: int, answer: _Answer) -> None:
    key = asked.read.keys[index]
    kept = encode(answer.logits, recipe, key)
    facts = {
        "classes": answer.logits.shape[-1],
        "dtype": _name(kept.dtype),
        "by_position": answer.by_position,
        "fields": None if asked.fields is None else list(asked.fields),
        "lacked": list(asked.lacked),
    }
    writer.add(key, kept.columns, kept.positions, kept.mass, facts)


def _answers(
    live: LiveTeacher, view: Any, read: Read, state: State, recipe: Recipe
) -> list[_Answer]:
    """Return each sample's answer, on the CPU, checked."""
    device = state.device.tensor_to_device(torch.empty(0)).device
    nothing = torch.empty((0, 0, 0), device=device)  # no student has answered
    microbatch = Microbatch(view, None, nothing)
    logits = live.target(microbatch, state)
    if recipe.vocab_size is not None:
        logits = logits[..., : recipe.vocab_size]
    logits = logits.cpu()
    if not bool(torch.isfinite(logits).all()):
        raise ValueError(
            f"{live.label}: its answers hold NaN or infinity, so that they were not kept. Check "
            "its checkpoint and the precision."
        )
    mask = read.mask
    by_position = logits.ndim == 3 and _reads_text(view)
    if mask is not None and by_position and mask.shape == logits.shape[:2]:
        return [_Answer(one[kept], True) for one, kept in zip(logits, mask, strict=True)]
    if mask is not None and by_position:
        by_position = False  # its positions are others than those of the text
    return [_Answer(one.clone(), by_position) for one in logits]


def _reads_text(view: Any) -> bool:
    inputs = view[0] if isinstance(view, Sequence) and len(view) else view
    return isinstance(inputs, Mapping)


def _on_device(batch: Any, data: Any, state: State) -> Any:
    """Return a batch as a Trainer hands it to the student."""
    if not isinstance(data, DataSpec):  # which asks loaders for samplers that none needs here
        return state.device.batch_to_device(batch)
    whole = data.batch_transforms(batch)
    return data.microbatch_transforms(state.device.batch_to_device(whole))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
