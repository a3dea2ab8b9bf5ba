"""A teacher as a configuration says it: one source of weights, and options."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from composer_distill.config.models import build_model
from composer_distill.config.names import snake_case, unknown
from composer_distill.config.reading import Reader, place
from composer_distill.teachers import CachedTeacher, EMATeacher, Snapshot, Teacher

_FOLDER, _CHECKPOINT, _CACHE, _MODEL = (
    "pretrained_model_name_or_path",
    "checkpoint",
    "cache",
    "model",
)
_OF_THE_STUDENT = {snake_case(kind.__name__): kind for kind in (EMATeacher, Snapshot)}
_ABSENT = object()
SOURCES = (_FOLDER, _CHECKPOINT, _CACHE, *_OF_THE_STUDENT)


def read_teacher(value: Any, path: str, reader: Reader) -> Teacher | CachedTeacher:
    """Build the teacher that a mapping describes.

    Args:
        value: The mapping.
        path: Where it stands, for errors.
        reader: Reads its values.

    Raises:
        TypeError, ValueError, OSError, ImportError: Whatever is wrong, under its path.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{path} must be a mapping with one of {', '.join(SOURCES)}.")
    source = _source(value, path)
    rest = {key: each for key, each in value.items() if key != source}
    if source in _OF_THE_STUDENT:
        for key in rest:
            raise ValueError(f"{path}.{key} stands beside {source}: write it within {source}.")
        return reader.build(_OF_THE_STUDENT[source], value[source] or {}, f"{path}.{source}")
    where = reader.value(str, value[source], f"{path}.{source}")
    if source == _CACHE:
        options = reader.arguments(CachedTeacher, rest, path, ("folder",))
        return place(partial(CachedTeacher, where), path, options, source)
    if source == _FOLDER:
        taken = ("model", "checkpoint", "ema")
        options = reader.arguments(Teacher, rest, path, taken)
        return place(partial(Teacher.from_pretrained, where), path, options, source)
    return _from_checkpoint(where, rest, path, reader)


def _from_checkpoint(where: str, rest: dict[str, Any], path: str, reader: Reader) -> Teacher:
    config = rest.pop(_MODEL, None)
    options = reader.arguments(Teacher, rest, path, ("model", "checkpoint"))
    name = options.get("name") or path.rpartition(".")[2]
    if config is None:
        return place(partial(Teacher.from_composer_checkpoint, where), path, options, _CHECKPOINT)
    model = build_model(config, where, name, f"{path}.{_MODEL}")
    return place(partial(Teacher, model, checkpoint=where), path, options, _CHECKPOINT)


def _source(value: Mapping[str, Any], path: str) -> str:
    """Return which key says where the weights are, or refuse none and two."""
    found = [key for key in SOURCES if value.get(key, _ABSENT) is not _ABSENT]
    if len(found) > 1:
        raise ValueError(
            f"{path} has several sources of weights ({', '.join(found)}). Leave one of them, and "
            "make each other a teacher of its own."
        )
    if found and _MODEL in value and found[0] != _CHECKPOINT:
        raise ValueError(
            f"{path}.model stands beside {found[0]}, which tells its own model. Leave one out."
        )
    if found:
        return found[0]
    if _MODEL in value:
        raise ValueError(
            f"{path} has a model and no weights, so that it would teach what is random. Add "
            "checkpoint, or name a Hugging Face folder as pretrained_model_name_or_path."
        )
    wrong = next((key for key in value if key not in SOURCES), "")
    raise ValueError(
        f"{path} says nowhere where its weights are: it needs one of {', '.join(SOURCES)}"
        + (f"; it has {wrong!r}. {unknown(wrong, SOURCES)}" if wrong else ".")
    )
