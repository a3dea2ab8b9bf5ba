"""``distillation_from_config``: the one way from plain types to a ``Distillation``."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.config import names
from composer_distill.config.reading import Kind, Reader
from composer_distill.config.teachers import read_teacher
from composer_distill.distillation import Distillation
from composer_distill.losses import DistillationLoss, FusedLinearKL
from composer_distill.losses.base import Schedule
from composer_distill.teachers import Teacher
from composer_distill.terms.features.term import FeatureTerm
from composer_distill.terms.judging import TeacherJudge, teacher_confident
from composer_distill.terms.positions import MaskFn


def distillation_from_config(
    config: Mapping[str, Any], *, path: str = "algorithms.distillation"
) -> Distillation:
    """Build a :class:`Distillation` of what a YAML says.

    A key is the name of an argument, of ``Distillation``, :class:`Teacher`,
    :class:`CachedTeacher`, :class:`FeatureTerm` or a loss. A loss is a mapping with its ``name``,
    which is that of its function (``kl_divergence``), or the name alone; a schedule a mapping
    with ``schedule``, one of Composer's in snake case (``linear``) or of LLM Foundry's. A mask has
    the name of a function, such as ``loss_positions``. Functions of your own can't be said.

    A teacher is a mapping with one source of its weights: ``pretrained_model_name_or_path``, a
    Hugging Face folder; ``checkpoint``, of Composer, with ``model`` as LLM Foundry writes it where
    it is none of transformers'; ``cache``, what :func:`cache_teacher` wrote; ``ema_teacher`` or
    ``snapshot`` with the arguments of :class:`EMATeacher` and :class:`Snapshot`.

    Args:
        config: A mapping of plain types.
        path: Where it stands in its file, for errors.

    Raises:
        FileNotFoundError: If there are no weights, or no cache, where it says.
        TypeError: If a value is of the wrong kind; the error names its path, as all do.
        ValueError: If a key or a word is not known, or a value has no sense.

    Example:
        >>> algorithm = distillation_from_config(
        ...     {
        ...         "teachers": {"snapshot": {"start_dur": 0.5}},
        ...         "kd_loss_fn": {"name": "kl_divergence", "temperature": 2.0},
        ...         "kd_loss_weight": {"schedule": "linear", "alpha_i": 1.0, "alpha_f": 0.0},
        ...     }
        ... )
        >>> algorithm.kd_loss_fn
        KLDivergence(temperature=2.0, dim=-1, reduction='mean')
    """
    return READER.build(Distillation, config, path)


def _named(
    value: Any, path: str, key: str, known: Mapping[str, Any]
) -> tuple[Any, Mapping[str, Any]]:
    """Return what a mapping's ``key`` names, and what else it says."""
    given = {key: value} if isinstance(value, str) else dict(value)
    if key not in given:
        raise ValueError(f"{path}.{key} is missing: say which. {names.unknown('', known)}")
    word = given.pop(key)
    if word not in known:
        where = path if isinstance(value, str) else f"{path}.{key}"
        raise ValueError(f"{where}: there is no {word!r}. {names.unknown(word, known)}")
    return known[word], given


def _loss(value: Any, path: str, reader: Reader) -> Any:
    make, given = _named(value, path, "name", names.losses())
    return reader.build(make, given, path)


def _schedule(value: Any, path: str, reader: Reader) -> Any:
    make, given = _named(value, path, "schedule", names.schedules())
    return reader.build(make, given, path)


def _mask(value: Any, path: str, reader: Reader) -> Any:
    found, given = _named(value, path, "name", names.masks())
    if found is teacher_confident:
        return reader.build(found, given, path)
    if isinstance(found, TeacherJudge):
        for key in given:
            raise ValueError(f"{path}.{key}: {found} has no such argument; it has none.")
        return found
    arguments = reader.arguments(found, given, path, ("batch", "outputs"))
    return partial(found, **arguments) if arguments else found


def _feature_term(value: Any, path: str, reader: Reader) -> FeatureTerm:
    return reader.build(FeatureTerm, value, path)


def _dtype(value: Any, path: str, reader: Reader) -> torch.dtype:
    if value not in names.dtypes():
        raise ValueError(
            f"{path}: there is no type {value!r}. {names.unknown(value, names.dtypes())}"
        )
    return names.dtypes()[value]


_LOSS = Kind(_loss, "a loss such as {name: kl_divergence}")
_SCHEDULE = Kind(_schedule, "a schedule such as {schedule: linear, alpha_f: 0.0}", by_name=False)
_MASK = Kind(_mask, "a mask such as {name: loss_positions}")

READER = Reader(
    {
        Teacher: Kind(read_teacher, "a teacher such as {cache: ./answers}", by_name=False),
        Callable[[Tensor, Tensor], Tensor]: _LOSS,
        Callable[..., Any]: _LOSS,
        DistillationLoss: _LOSS,
        FusedLinearKL: _LOSS,
        Callable[[State], float]: _SCHEDULE,
        Schedule: _SCHEDULE,
        MaskFn: _MASK,
        FeatureTerm: Kind(_feature_term, "a mapping such as {student: layer1, loss: hidden_mse}"),
        torch.dtype: Kind(_dtype, "the name of a type such as bfloat16"),
    }
)
"""What every type in the public signatures is written as."""
