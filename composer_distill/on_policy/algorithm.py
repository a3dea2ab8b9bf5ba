"""The ``OnPolicy`` algorithm: its arguments, and what it does at which event."""

import time
from typing import Any

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from composer.utils import dist

from composer_distill.on_policy.arguments import (
    check_function,
    check_number,
    fraction_now,
)
from composer_distill.on_policy.drawing import is_drawn, stream_seed
from composer_distill.on_policy.generation import GenerateFn, Sampling
from composer_distill.on_policy.keeping import Store
from composer_distill.on_policy.meter import Meter
from composer_distill.on_policy.student import Writer, writer_of
from composer_distill.on_policy.writing import PromptFn, Text, prompts_of, with_text, write
from composer_distill.schedule import Weight
from composer_distill.training.arguments import check_seed, describe_call


class OnPolicy(Algorithm):
    """Let the student write a share of the batches, so that it learns on text of its own.

    A batch that is drawn keeps its prompts alone: the student continues them, in eval mode, without
    gradients and in the Trainer's precision, and the batch becomes prompts and continuations. Its
    labels are -100 on the prompts and behind the first end of sequence. All that follows reads that
    batch: the student's own loss, :class:`.Distillation` and its teachers, metrics, microbatches.
    With ``Distillation(..., org_loss_weight=0.0)`` that is generalized knowledge distillation; the
    student's own loss on its own text teaches nothing.

    It acts at BATCH_START, once a batch, behind all that shapes batches at AFTER_DATALOADER.
    Composer counts samples and tokens of a batch before that, so that its timestamps tell what the
    dataloader gave. Each batch that is drawn logs ``on_policy/generate_time`` (the share of the
    step's wall clock), ``on_policy/mean_length`` (tokens), ``on_policy/share_ended``,
    ``on_policy/staleness`` (batches) and, where text was written, ``on_policy/tokens_per_second``
    over all ranks and ``on_policy/share_cut``, the share of prompts that were cut.

    Args:
        fraction: The share of batches that the student writes, 0 to 1: a number, or a schedule,
            which is any callable of the Trainer's ``State``. Which they are is a pure function of
            ``seed`` and the batch's index.
        max_new_tokens: The most tokens of a continuation. A prompt that leaves no room for as many
            in the student's context keeps its last tokens alone.
        temperature: What the student's logits are divided by before it samples; 0 takes the
            likeliest token.
        top_p: The probability that the likeliest tokens must hold; others are never drawn.
        seed: Seed of the draw of batches, and of the tokens: those depend on the rank too.
        prompt_fn: Which positions are the prompt: ``(batch) -> bool tensor`` over ``input_ids``.
            None: those before the first label that is not -100, and always the first token. For
            students that are a decoder alone; an encoder's whole input is the prompt.
        generate_fn: Writes in place of the student's own ``generate``:
            ``(model, prompts, attention_mask, sampling) -> continuations`` of shape ``(B, n)``,
            without the prompts; ``sampling`` is a :class:`.Sampling`. A door for students that are
            served elsewhere.
        buffer_batches: How many batches are written at once: each prompt is continued as often, and
            the next batches that are drawn train on the other continuations, whatever the
            dataloader gives them. Cheaper for each token, and older.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range.

    Reference:
        Agarwal et al. 2023, arXiv 2306.13649.

    Example:
        >>> from composer_distill import OnPolicy
        >>> algorithm = OnPolicy(fraction=0.5, max_new_tokens=64)
    """

    def __init__(
        self,
        fraction: Weight = 0.5,
        max_new_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        prompt_fn: PromptFn | None = None,
        generate_fn: GenerateFn | None = None,
        buffer_batches: int = 1,
    ) -> None:
        if not callable(fraction):
            check_number(fraction, "fraction", 0.0, 1.0)
        check_number(max_new_tokens, "max_new_tokens", 1, None, whole=True)
        check_number(temperature, "temperature", 0.0, None)
        check_number(top_p, "top_p", 0.0, 1.0, above=True)
        check_number(buffer_batches, "buffer_batches", 1, None, whole=True)
        check_function(prompt_fn, "prompt_fn", "(batch)")
        check_function(generate_fn, "generate_fn", "(model, prompts, attention_mask, sampling)")
        self.fraction = fraction
        self.max_new_tokens = int(max_new_tokens)
        self.temperature, self.top_p = float(temperature), float(top_p)
        self.seed = check_seed(seed)
        self.prompt_fn, self.generate_fn = prompt_fn, generate_fn
        self.buffer_batches = int(buffer_batches)
        self._writer: Writer | None = None
        self._store = Store()
        self._meter: Meter | None = None

    def match(self, event: Event, state: State) -> bool:
        """Return whether ``apply`` has something to do at ``event``."""
        if event is Event.BATCH_START:
            batch = int(state.timestamp.batch)
            return is_drawn(fraction_now(self.fraction, state), self.seed, batch)
        if event is Event.BATCH_END:
            return self._meter is not None
        return event is Event.INIT or event is Event.FIT_START

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do what ``event`` asks for; Composer calls this where ``match`` says so."""
        if event is Event.INIT:
            self._prepare(state)
        elif event is Event.FIT_START:
            self._start(state)
        elif event is Event.BATCH_START:
            self._replace(state)
        elif self._meter is not None:
            metrics, self._meter = self._meter.take(state), None
            step = int(state.previous_timestamp.batch) if state.previous_timestamp else None
            logger.log_metrics(metrics, step=step)

    def _prepare(self, state: State) -> None:
        """INIT: read the student, and refuse what can't work before anything is trained."""
        if sum(isinstance(algorithm, OnPolicy) for algorithm in state.algorithms) > 1:
            raise ValueError(
                "a Trainer takes one OnPolicy: a second would replace what the first has written. "
                "Give one of them a schedule for its fraction."
            )
        writer = writer_of(state.model, writes=self.generate_fn is None)
        if writer.encoder_decoder and self.prompt_fn is not None:
            raise ValueError(
                "prompt_fn chooses the prompt of a decoder alone, but the student is an encoder-"
                "decoder, whose encoder reads the whole prompt. Leave prompt_fn out."
            )
        if writer.context is not None and self.max_new_tokens >= writer.context:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens} leaves no room for a prompt: the student's "
                f"context has {writer.context} positions. Take fewer tokens."
            )
        self._writer, self._store = writer, Store()  # nothing of a former Trainer's student

    def _start(self, state: State) -> None:
        """FIT_START: forget what a fit that was interrupted, or whose time was reset, has left."""
        self._meter = None
        if self._store.written_at >= int(state.timestamp.batch):
            self._store = Store()

    def _replace(self, state: State) -> None:
        """BATCH_START: put text of the student in the place of the batch's own."""
        if self._writer is None:
            raise RuntimeError("OnPolicy has not seen its Trainer begin. Pass it to the Trainer.")
        batch, store = int(state.timestamp.batch), self._store
        generated = None
        if not store:
            generated = self._write(state, self._writer, batch)
        text = store.take()
        self._meter = Meter(text, self._writer.ends, batch - store.written_at)
        if generated is not None:
            self._meter.note_generation(*generated)
        state.batch = with_text(state.batch, text)

    def _write(self, state: State, writer: Writer, batch: int) -> tuple[float, list[Text], int]:
        """Fill the store; return how long it took, with what, and how many prompts were cut."""
        start = time.perf_counter()
        kept = self.buffer_batches > 1
        prompts = prompts_of(state.batch, writer, self.max_new_tokens, self.prompt_fn, kept=kept)
        sampling = Sampling(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            ends=writer.ends,
            pad=writer.pad,
            encoder_decoder=writer.encoder_decoder,
            seed=stream_seed(self.seed, batch, dist.get_global_rank()),
            synchronised=state.fsdp_enabled and dist.get_world_size() > 1,
        )
        texts = write(state, writer, prompts, sampling, self.buffer_batches, self.generate_fn)
        self._store.fill(texts, batch)
        return time.perf_counter() - start, texts, prompts.n_cut

    def state_dict(self) -> dict[str, Any]:
        """Return what was written ahead, for a resumed run."""
        return {**super().state_dict(), "store": self._store.state_dict()}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Go on with what was written ahead."""
        if "store" in state:
            self._store.load_state_dict(state["store"])

    def __repr__(self) -> str:
        """Describe the arguments, without memory addresses."""
        functions = {"prompt_fn": self.prompt_fn, "generate_fn": self.generate_fn}
        return describe_call(
            "OnPolicy",
            fraction=self.fraction,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            buffer_batches=self.buffer_batches,
            **{name: value for name, value in functions.items() if value is not None},
        )
