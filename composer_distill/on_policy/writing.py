"""A batch as the student writes it: its prompts, continued, in the place of its text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import State
from torch import Tensor

from composer_distill.notes import noted
from composer_distill.on_policy.generation import GenerateFn, Sampling, continuations
from composer_distill.on_policy.student import Writer, bare
from composer_distill.on_policy.text import (
    as_labels,
    before_labels,
    joined,
    left_padded,
    lengths,
)
from composer_distill.teachers.splitting import shallow_copy

PromptFn = Callable[[Any], Tensor]
"""``(batch) -> bool tensor`` over the positions of ``input_ids``: those that are the prompt."""

Text = dict[str, Tensor]
"""What stands in a batch in place of its text: ``input_ids``, ``attention_mask``, ``labels``."""

_OWN = ("input_ids", "attention_mask", "labels")
_MADE_ANEW = ("position_ids", "decoder_input_ids", "decoder_attention_mask")


@dataclass(frozen=True)
class Prompts:
    """The prompts of a batch, on the host.

    Args:
        rows: Token ids, one tensor each.
        ids: The same padded: on the left for a decoder alone.
        attention_mask: 1 at tokens.
        n_cut: How many lost their beginning, so that a continuation has room.
    """

    rows: list[Tensor]
    ids: Tensor
    attention_mask: Tensor
    n_cut: int = 0


def prompts_of(
    batch: Any, writer: Writer, room: int, prompt_fn: PromptFn | None, *, kept: bool = False
) -> Prompts:
    """Return the prompts of a batch.

    Args:
        batch: What the dataloader gave.
        writer: The student.
        room: How many tokens a continuation may have.
        prompt_fn: Which positions are the prompt; None for those before a row's first label.
        kept: Whether text is kept for later batches.

    Raises:
        TypeError: If the batch is no mapping, or ``prompt_fn`` returns no booleans.
        ValueError: If entries are missing, or a row holds no prompt.
    """
    needs_labels = prompt_fn is None and not writer.encoder_decoder
    check_entries(batch, writer, needs_labels=needs_labels, alone=kept)
    ids = batch["input_ids"].cpu()
    mask = batch.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.cpu()
    if writer.encoder_decoder:
        return Prompts(list(ids), ids, mask)
    attended = mask != 0
    if prompt_fn is None:
        chosen = before_labels(batch["labels"].cpu(), attended)
    else:
        chosen = _asked(prompt_fn, batch, ids) & attended
    if not chosen.any(-1).all():
        row = int((~chosen.any(-1)).nonzero()[0])
        raise ValueError(
            f"OnPolicy found no prompt in row {row} of the batch: no position of it is "
            f"{'attended' if prompt_fn is None else 'chosen by prompt_fn and attended'}. Give "
            "each row at least one token to go on from."
        )
    rows = [row[where] for row, where in zip(ids, chosen, strict=True)]
    longest = len(ids[0]) if writer.context is None else writer.context - room
    n_cut = sum(len(row) > longest for row in rows)
    rows = [row[-longest:] for row in rows]
    return Prompts(rows, *left_padded(rows, writer.pad), n_cut)


def write(
    state: State,
    writer: Writer,
    prompts: Prompts,
    sampling: Sampling,
    copies: int = 1,
    generate_fn: GenerateFn | None = None,
) -> list[Text]:
    """Return as many texts as are asked for, each of which continues every prompt.

    Args:
        state: The Trainer's state.
        writer: The student.
        prompts: What it continues.
        sampling: How it samples.
        copies: How many texts; all are written at once.
        generate_fn: Writes in place of the student's own ``generate``.
    """
    inputs = prompts.ids.repeat(copies, 1), prompts.attention_mask.repeat(copies, 1)
    made = continuations(state, bare(state.model), *inputs, sampling, generate_fn)
    counted, _ = lengths(made, sampling.ends)
    size = len(prompts.rows)
    texts = []
    for tokens, count in zip(made.split(size), counted.split(size), strict=True):
        if writer.encoder_decoder:
            own = {"input_ids": prompts.ids, "attention_mask": prompts.attention_mask}
            texts.append({**own, "labels": as_labels(tokens, count)})
        else:
            texts.append(joined(prompts.rows, tokens, count, writer.pad))
    return texts


def with_text(batch: Any, text: Text) -> Any:
    """Return a batch of the same kind that holds another text; the one given stays as it was.

    Entries with a value for each token of the old text are left out, and ``position_ids`` count
    anew: the text is padded behind.

    Args:
        batch: What the dataloader gave.
        text: What stands in it from now on.
    """
    made = shallow_copy(batch)
    old = batch["input_ids"]
    for name in [name for name, value in batch.items() if _is_per_token(name, value, old)]:
        del made[name]
    for name, value in text.items():
        kind = batch[name].dtype if name in batch else value.dtype
        made[name] = value.to(old.device, kind)
    if "position_ids" in batch:
        places = torch.arange(text["input_ids"].shape[1], device=old.device)
        made["position_ids"] = places.expand(text["input_ids"].shape).clone()
    return made


def check_entries(batch: Any, writer: Writer, *, needs_labels: bool, alone: bool) -> None:
    """Refuse a batch whose text can't be replaced.

    Args:
        batch: What the dataloader gave.
        writer: The student.
        needs_labels: Whether prompts are read from labels.
        alone: Whether nothing may stand beside the text: it will train in another batch's place.

    Raises:
        TypeError: If it is no mapping.
        ValueError: If entries are missing, or the student reads some that new text would not fit.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"OnPolicy needs batches that are mappings with 'input_ids', got a "
            f"{type(batch).__name__}. Let the dataloader's collate_fn return a dict."
        )
    for name in ("input_ids", "labels") if needs_labels else ("input_ids",):
        if not isinstance(batch.get(name), Tensor) or batch[name].ndim != 2:
            raise ValueError(
                f"OnPolicy needs {name!r} of shape (batch, tokens) in each batch, got "
                f"{sorted(batch)}. Add it in the dataloader's collate_fn"
                f"{', or pass OnPolicy(prompt_fn=...).' if name == 'labels' else '.'}"
            )
    others = {name: batch[name] for name in batch if name not in (*_OWN, *_MADE_ANEW)}
    if alone and others:
        raise ValueError(
            f"buffer_batches above 1 trains on text in the place of other batches, which what "
            f"stands beside it would not fit: {sorted(others)}. Leave it out in the dataloader's "
            "collate_fn, or use buffer_batches=1."
        )
    for name, value in others.items():
        if isinstance(value, Tensor) and writer.reads is not None and name in writer.reads:
            raise ValueError(
                f"OnPolicy can't tell what {name!r} of the batch, which the student reads, is for "
                "text that the student writes. Leave it out in the dataloader's collate_fn."
            )


def _is_per_token(name: str, value: Any, ids: Tensor) -> bool:
    per_token = isinstance(value, Tensor) and value.shape[:2] == ids.shape
    return name in (*_OWN, *_MADE_ANEW) or per_token


def _asked(prompt_fn: PromptFn, batch: Any, ids: Tensor) -> Tensor:
    with noted("prompt_fn", prompt_fn):
        found = prompt_fn(batch)
    if not isinstance(found, Tensor) or found.dtype != torch.bool:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise TypeError(
            f"prompt_fn must return a boolean tensor over the positions of input_ids, got {kind}. "
            "Compare, as in torch.arange(length) < 32."
        )
    try:
        return found.cpu().expand(ids.shape)
    except RuntimeError as error:
        raise ValueError(
            f"prompt_fn must return a mask of shape {tuple(ids.shape)}, as input_ids, got "
            f"{tuple(found.shape)}. Give each position of input_ids one value."
        ) from error
