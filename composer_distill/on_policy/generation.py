"""How a student writes: continuations of prompts, without a trace in the student."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import State, get_precision_context
from torch import Tensor, nn

from composer_distill.notes import noted
from composer_distill.teachers.sharding import reshard
from composer_distill.teachers.streams import untouched_streams


@dataclass(frozen=True)
class Sampling:
    """How continuations are sampled; what a ``generate_fn`` is told.

    Args:
        max_new_tokens: The most tokens of a continuation, its end among them.
        temperature: What logits are divided by; 0 takes the likeliest token.
        top_p: The probability that the likeliest tokens must hold; others are never drawn.
        ends: The ids that end a sequence.
        pad: The id that pads prompts, and what is behind an end.
        encoder_decoder: Whether prompts are an encoder's.
        seed: Of this rank's stream for this batch. torch's own streams are seeded with it already.
        synchronised: Whether ranks must run the student equally often, as under FSDP.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    ends: tuple[int, ...] = ()
    pad: int = 0
    encoder_decoder: bool = False
    seed: int = 0
    synchronised: bool = False


GenerateFn = Callable[[Any, Tensor, Tensor, Sampling], Tensor]
"""``(model, prompts, attention_mask, sampling) -> continuations``."""

# What a model's own generation config may say beside, taken back: the distribution that is sampled
# is the student's, at ``temperature`` and ``top_p`` alone.
_PLAIN: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": None,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_eos_token_id": None,
    "min_length": 0,
    "min_new_tokens": None,
    "use_cache": True,
    "return_dict_in_generate": False,
}


def generate(model: Any, prompts: Tensor, attention_mask: Tensor, sampling: Sampling) -> Tensor:
    """Continue prompts by the ``generate`` of a Composer ``HuggingFaceModel``.

    Args:
        model: The student, out of its wrapper for several processes.
        prompts: Token ids; padded on the left for a decoder alone.
        attention_mask: 1 at tokens, 0 at padding.
        sampling: How to sample.

    Shape:
        - prompts, attention_mask: ``(B, T)``.
        - result: ``(B, n)``, ``n <= max_new_tokens``, without the prompts.
    """
    samples = sampling.temperature > 0.0
    made = model.generate(
        prompts,
        attention_mask=attention_mask,
        max_new_tokens=sampling.max_new_tokens,
        do_sample=samples,
        temperature=sampling.temperature if samples else 1.0,
        top_p=sampling.top_p if samples else 1.0,
        top_k=0 if samples else 50,  # transformers' default, which it does not read, says nothing
        eos_token_id=list(sampling.ends) or None,
        pad_token_id=sampling.pad,
        synced_gpus=sampling.synchronised,
        **_PLAIN,
    )
    return made[:, 1 if sampling.encoder_decoder else prompts.shape[1] :]


def continuations(
    state: State,
    model: nn.Module,
    prompts: Tensor,
    attention_mask: Tensor,
    sampling: Sampling,
    generate_fn: GenerateFn | None = None,
) -> Tensor:
    """Let the student write, in eval mode, without gradients, in the Trainer's precision.

    Modes and random streams are afterwards as they were.

    Args:
        state: The Trainer's state.
        model: The student, out of its wrapper for several processes.
        prompts: Token ids.
        attention_mask: 1 at tokens, 0 at padding.
        sampling: How to sample.
        generate_fn: Writes in place of the student's own ``generate``.

    Shape:
        - prompts, attention_mask: ``(B, T)``.
        - result: ``(B, n)``, ``1 <= n <= max_new_tokens``, on the host.

    Raises:
        TypeError: If ``generate_fn`` returns no tensor of integers.
        ValueError: If what it returns has another shape, or negative ids.
    """
    device = state.device.tensor_to_device(torch.empty(0)).device
    precision = get_precision_context(state.precision, state.precision_config)
    inputs = prompts.to(device), attention_mask.to(device)
    with untouched_streams(device), _in_eval_mode(model), torch.no_grad(), precision:
        _seed(sampling.seed, device)
        if generate_fn is None:
            made = generate(model, *inputs, sampling)
        else:
            with noted("generate_fn", generate_fn):
                made = generate_fn(model, *inputs, sampling)
            _check(made, len(prompts), sampling)
    reshard(model)
    return made.to("cpu", torch.long)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the streams of the host and of one device, and no other's."""
    torch.default_generator.manual_seed(seed)
    if device.type not in ("cpu", "meta"):
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def _in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and each of its modules back in its own."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check(made: Any, rows: int, sampling: Sampling) -> None:
    """Refuse what is no continuation of the prompts."""
    if not isinstance(made, Tensor) or made.is_floating_point() or made.dtype == torch.bool:
        kind = made.dtype if isinstance(made, Tensor) else type(made).__name__
        raise TypeError(
            f"generate_fn must return a tensor of token ids, got {kind}. Return the continuations "
            "without the prompts, one row a prompt."
        )
    fits = made.ndim == 2 and made.shape[0] == rows
    if not (fits and 1 <= made.shape[1] <= sampling.max_new_tokens):
        raise ValueError(
            f"generate_fn must return continuations of shape ({rows}, n) with "
            f"1 <= n <= max_new_tokens={sampling.max_new_tokens}, got {tuple(made.shape)}. Return "
            "them without the prompts, padded behind."
        )
    if (made < 0).any():
        raise ValueError(
            f"generate_fn must return token ids, got {int(made.min())} among them. Pad behind an "
            f"end with an id such as sampling.pad={sampling.pad}."
        )
