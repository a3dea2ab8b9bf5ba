"""Whether student and teacher mean the same words, and the cut to the words that are real.

Checkpoints pad their vocabularies to round numbers, each model its own: 151936 rows of logits for
151665 tokens, 50304 for 50257. The rows past the tokenizer's last token mean nothing. Cutting both
models' logits before the softmax renormalises over the real tokens; padding the smaller one with
zeros instead would give its phantom tokens probability.
"""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from torch import Tensor, nn

_SHOWN = 3


def check_vocab_size(vocab_size: object) -> int | None:
    """Return ``vocab_size`` as an int, or None where it is None.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below 2.
    """
    if vocab_size is None:
        return None
    if not isinstance(vocab_size, Integral) or isinstance(vocab_size, bool):
        raise TypeError(
            "vocab_size must be a whole number or None, got "
            f"{type(vocab_size).__name__}. Pass len(tokenizer)."
        )
    if vocab_size < 2:
        raise ValueError(
            f"vocab_size must be at least 2, got {vocab_size}. Pass len(tokenizer), the number of "
            "tokens that are real."
        )
    return int(vocab_size)


def cut_vocabulary(logits: Tensor, vocab_size: int | None, owner: str, axis: int = -1) -> Tensor:
    """Return the logits of the first ``vocab_size`` classes: a view, nothing is copied.

    A softmax over the result is renormalised over the real vocabulary, since the classes cut away
    no longer take part in it.

    Args:
        logits: A model's logits.
        vocab_size: How many classes are real, or None to keep all.
        owner: Whose logits they are, for errors.
        axis: The class axis.

    Shape:
        - logits: ``(..., C)``, or the class axis at ``axis``.
        - result: the same, with ``vocab_size`` for ``C``.

    Raises:
        ValueError: If there are fewer classes than ``vocab_size``.

    Example:
        >>> import torch
        >>> cut_vocabulary(torch.zeros(2, 5, 50304), 50257, "the student").shape
        torch.Size([2, 5, 50257])
    """
    if vocab_size is None:
        return logits
    size = logits.shape[axis]
    if size < vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} is more than the {size} classes of {owner}. Pass the number "
            "of tokens that both models have, the smaller len(tokenizer)."
        )
    return logits.narrow(axis, 0, vocab_size)


def explain_sizes(student_size: int, teacher_size: int, real: int | None = None) -> str:
    """Return what to do about vocabularies of unequal sizes, as an error's last sentence.

    Args:
        student_size: The student's number of classes.
        teacher_size: The teacher's.
        real: The tokenizers' number of tokens, where they are known.
    """
    smaller = min(student_size, teacher_size)
    if real is not None and real <= smaller:
        return (
            f"one tokenizer of {real} tokens serves both, so the rest is padding. Pass "
            f"Distillation(..., vocab_size={real}) to cut both."
        )
    return (
        "if both use one tokenizer and the rest is padding, pass "
        f"Distillation(..., vocab_size=len(tokenizer)), at most {smaller}; a teacher with a "
        "tokenizer of its own can't be compared class by class."
    )


def tokenizer_of(model: nn.Module) -> Any | None:
    """Return the tokenizer that a model carries, as Composer's ``HuggingFaceModel`` does, or None.

    Args:
        model: A model, wrapped for distributed training or not.
    """
    for module in (model, getattr(model, "module", None)):
        tokenizer = getattr(module, "tokenizer", None)
        if callable(getattr(tokenizer, "get_vocab", None)):
            return tokenizer
    return None


def check_same_tokenizer(
    student: Any, teacher: Any, owner: str, vocab_size: int | None = None
) -> None:
    """Refuse a teacher whose tokenizer is not the student's.

    Compared are the mapping of tokens to ids and the special tokens, not the sizes alone: two
    vocabularies of one size can disagree on every word, and distillation would then teach noise.
    The padding token is left out: padding positions carry no loss. How text is split into tokens is
    not compared either, since both models read the same ids.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's tokenizer.
        owner: Which teacher it is, for errors.
        vocab_size: Ids from here on are cut away and not compared.

    Raises:
        ValueError: Naming the first tokens that differ.
    """
    if student is teacher:
        return
    ours, theirs = _ids(student, vocab_size), _ids(teacher, vocab_size)
    if ours != theirs:
        raise ValueError(
            f"{owner}: its tokenizer is not the student's: {_difference(ours, theirs)}.\n"
            "Logits are compared class by class, so both need one vocabulary: use a teacher that "
            "was trained with the student's tokenizer, or pass vocab_size= where only the last "
            "tokens differ."
        )
    special = {
        name: (ours_, theirs_)
        for name, ours_, theirs_ in _special_tokens(student, teacher)
        if ours_ != theirs_
    }
    if special:
        name, (ours_, theirs_) = next(iter(special.items()))
        raise ValueError(
            f"{owner}: its tokenizer has the student's tokens but another {name}: {theirs_!r} "
            f"where the student's is {ours_!r}.\nIf the teacher knows the student's special "
            "tokens all the same, give it the student's tokenizer: teacher.tokenizer = tokenizer."
        )


def _ids(tokenizer: Any, vocab_size: int | None) -> dict[str, int]:
    """Return token to id below ``vocab_size``."""
    vocabulary: Mapping[str, int] = tokenizer.get_vocab()
    if vocab_size is None:
        return dict(vocabulary)
    return {token: index for token, index in vocabulary.items() if index < vocab_size}


def _special_tokens(student: Any, teacher: Any) -> Sequence[tuple[str, Any, Any]]:
    ours = getattr(student, "special_tokens_map", {})
    theirs = getattr(teacher, "special_tokens_map", {})
    names = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ("pad_token", "additional_special_tokens")
    ]
    return [(name, ours.get(name), theirs.get(name)) for name in names]


def _difference(ours: Mapping[str, int], theirs: Mapping[str, int]) -> str:
    by_id = {index: token for token, index in theirs.items()}
    moved = [
        (index, token, by_id.get(index))
        for token, index in sorted(ours.items(), key=lambda item: item[1])
        if by_id.get(index) != token
    ]
    if not moved:
        return f"it has {len(theirs)} tokens where the student's has {len(ours)}"
    shown = ", ".join(f"id {i} is {b!r}, not {a!r}" for i, a, b in moved[:_SHOWN])
    return f"{len(moved)} of the student's {len(ours)} tokens differ ({shown})"
