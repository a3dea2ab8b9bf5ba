"""What of a student is known before it writes: its words, its context, and what it reads."""

from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")


@dataclass(frozen=True)
class Writer:
    """A student as one who writes.

    Args:
        encoder_decoder: Whether prompts are read by an encoder.
        ends: The ids that end a sequence, in rising order; none where none is known.
        pad: The id that pads.
        context: The most positions that a decoder's text may have; None where nothing says so.
        reads: The names that the student's forward takes; None where any may be read.
    """

    encoder_decoder: bool
    ends: tuple[int, ...]
    pad: int
    context: int | None
    reads: frozenset[str] | None


def bare(model: nn.Module) -> nn.Module:
    """Return a student out of its wrapper for several processes."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def writer_of(model: nn.Module, *, writes: bool) -> Writer:
    """Read a student's configuration and tokenizer.

    Args:
        model: The student, wrapped for several processes or not.
        writes: Whether it is the student's own ``generate`` that writes.

    Raises:
        TypeError: If it is to write and has no ``generate``.
    """
    student = bare(model)
    config = _first(student, "config")
    if writes and not callable(getattr(student, "generate", None)):
        raise TypeError(
            f"OnPolicy lets the student write, but a {type(student).__name__} has no generate. "
            "Wrap a Hugging Face model in composer.models.HuggingFaceModel, or pass "
            "OnPolicy(generate_fn=...)."
        )
    tokenizer = getattr(student, "tokenizer", None)
    sources = (_first(student, "generation_config"), config, tokenizer)
    ends = _ids(_known(sources, "eos_token_id"))
    pads = _ids(_known((tokenizer, *sources[:2]), "pad_token_id"))
    reads = getattr(student, "model_forward_args", None)
    return Writer(
        encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        ends=ends,
        pad=(pads or ends or (0,))[0],
        context=_context(config),
        reads=None if reads is None else frozenset(reads),
    )


def _first(model: nn.Module, name: str) -> Any:
    """Return attribute ``name`` of the outermost module that has it, None where none does."""
    return next((getattr(m, name) for m in model.modules() if hasattr(m, name)), None)


def _known(sources: Iterable[Any], name: str) -> Any:
    """Return attribute ``name`` of the first source that knows it, None where none does."""
    found = (getattr(source, name, None) for source in sources)
    return next((value for value in found if value is not None), None)


def _ids(found: Any) -> tuple[int, ...]:
    """Return ids, of which a model may name one, several or none."""
    if found is None:
        return ()
    given = (found,) if isinstance(found, Integral) else found
    return tuple(sorted(int(each) for each in given))


def _context(config: Any) -> int | None:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = next((getattr(text, name) for name in _CONTEXTS if hasattr(text, name)), None)
    return int(found) if isinstance(found, Integral) and int(found) > 0 else None
