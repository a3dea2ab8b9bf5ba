"""Errors that speak of Python's arguments, said as a configuration writes them."""

import inspect
import re
from collections.abc import Collection, Mapping
from typing import get_type_hints

from composer_distill.config.names import losses
from composer_distill.config.reading import Reader
from composer_distill.distillation import Distillation
from composer_distill.teachers import CachedTeacher, EMATeacher, Snapshot, Teacher
from composer_distill.terms.features.term import FeatureTerm

_MADE = (Distillation, Teacher, CachedTeacher, EMATeacher, Snapshot, FeatureTerm)
_WORDS = {"True": "true", "False": "false", "None": "null", "": "..."}
_ARGUMENT = re.compile(r"\b(?P<name>[a-z]\w*)=(?P<value>'[^']*'|[\w.+-]*\w|\.\.\.|(?=[ ,.;)]))")
_BUILT = re.compile(r"build (?:the model|it) yourself and pass Teacher\(model[^)]*\)")


def as_written(text: str, reader: Reader) -> str:
    """Return an error's text with arguments and losses as a configuration writes them.

    What a configuration can't say stays in Python's words, and the text says so.

    Args:
        text: The text.
        reader: What knows which types can be said.

    Example:
        >>> from composer_distill.config.distillation import READER
        >>> as_written("Use KLDivergence(temperature=2.0) or combine='logits'.", READER)
        'Use {name: kl_divergence, temperature: 2.0} or combine: logits.'
    """
    known = _arguments(reader)
    unsaid = {m["name"]: None for m in _ARGUMENT.finditer(text) if known.get(m["name"]) is False}

    def say(found: re.Match[str]) -> str:
        name, value = found["name"], found["value"]
        word = _WORDS.get(value, value.removeprefix("torch.").strip("'"))
        return f"{name}: {word}" if known.get(name) else found[0]

    text = _BUILT.sub("give model: {name: ...} beside checkpoint", text)
    text = text.replace("Teacher.from_pretrained", "pretrained_model_name_or_path")
    text = _losses(_ARGUMENT.sub(say, text), losses())
    if not unsaid:
        return re.sub(_call({made.__name__ for made in _MADE}), r"\2", text)
    return f"{text} A configuration can't say {', '.join(unsaid)}: build Distillation in Python."


def _call(names: Collection[str]) -> str:
    within = r"(?:[^()]|\(\w*\))*"
    return rf"\b({'|'.join(sorted(names))})\((?:\.\.\., |model, )?({within}: {within})\)"


def _losses(text: str, known: Mapping[str, type]) -> str:
    written = {made.__name__: name for name, made in known.items()}
    text = re.sub(_call(written), lambda m: f"{{name: {written[m[1]]}, {m[2]}}}", text)
    names = rf"(?:composer_distill\.)?\b({'|'.join(written)})\b(?:\(\))?"
    return re.sub(names, lambda m: written[m[1]], text)


def _arguments(reader: Reader) -> Mapping[str, bool]:
    """Return whether a configuration can say each argument, of all that it builds."""
    found = {"model": True}
    for made in (*losses().values(), *_MADE):
        hints = get_type_hints(made.__init__)
        for name in inspect.signature(made).parameters:
            found.setdefault(name, name in hints and reader.says(hints[name]))
    return found
