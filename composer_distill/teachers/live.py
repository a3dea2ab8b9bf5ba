"""A teacher at work in a Trainer: placed or sharded, and asked without leaving a trace."""

import logging
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from composer.core import State, get_precision_context
from torch import Tensor, nn

from composer_distill.notes import add_note
from composer_distill.teachers.head_recorder import Head, HeadRecorder
from composer_distill.teachers.heads import only_at, without_logits
from composer_distill.teachers.lane import share_workspace
from composer_distill.teachers.lending import Lending
from composer_distill.teachers.microbatch import Microbatch
from composer_distill.teachers.modes import common_modules, modes_kept
from composer_distill.teachers.outputs import call_model, extract_logits, names_read
from composer_distill.teachers.packed import cannot_read, reads_over_borders
from composer_distill.teachers.sharding import Sharding, is_to_be_sharded, reshard, shard
from composer_distill.teachers.streams import untouched_streams
from composer_distill.teachers.teacher import Extract, Forward, Teacher

_log = logging.getLogger(__name__)


class LiveTeacher:
    """A source of targets that runs a model.

    Args:
        teacher: The model and its options.
        label: What errors and logs call it in this run.
    """

    def __init__(self, teacher: Teacher, label: str) -> None:
        self.teacher = teacher
        self.label = label
        self.weight = teacher.weight
        self.window = teacher.window
        self._device = torch.device("cpu")
        self.sharded = self._shares = False  # known from INIT on
        self._away = self._told = False
        self._common: list[nn.Module] = []  # such as a dropout without tensors
        self._recorder: HeadRecorder | None = None
        self._lending = Lending(label)
        self.call: Forward = call_model  # by which its model runs: others may listen there

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Freeze the model, and place it on the Trainer's device or shard it, at INIT.

        Args:
            state: The Trainer's state.
            sharding: Whether teachers are whole on each rank; see ``Distillation``.

        Raises:
            ValueError: If it can't be sharded as asked, or has no weights.
        """
        self._device = state.device.tensor_to_device(torch.empty(0)).device
        self._away = False
        self._lending = Lending(self.label)
        self._common = common_modules(state.model, self.teacher.model)
        with modes_kept(self._common):
            self.teacher.freeze()
        self._shares = share_workspace(state.model, self.teacher.model)
        self.sharded = is_to_be_sharded(self.teacher.model, sharding, state, self.label)
        if self.sharded:
            self.teacher.place(torch.device("cpu"))
            shard(self.teacher.model, state)
        else:
            self.teacher.place(self._device)

    @property
    def stands_apart(self) -> bool:
        """Whether its forward shares nothing with the student's; shards are gathered together."""
        return not (self.sharded or self._shares)

    def settle(self) -> None:
        """Bring the model back to the device, if it had left it."""
        if self._away:
            self._away = False
            self.teacher.place(self._device)

    def leave(self) -> None:
        """Free the device of the model; one that is sharded stays."""
        if not (self._away or self.sharded or self._device.type == "cpu"):
            self._away = True
            self.teacher.to_host()

    def target(self, microbatch: Microbatch, state: State) -> Tensor:
        """Return the model's logits, in eval mode and in the Trainer's precision.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.
        """
        as_student = self.teacher.answers_as_the_student
        around = only_at(self.teacher.model, microbatch) if as_student else nullcontext()
        return self.ask(microbatch, state, around)

    def head(self, microbatch: Microbatch, state: State) -> tuple[Head, Tensor]:
        """Return the model's hidden states and output embedding, and its logits at one position.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.

        Raises:
            ValueError: If the model's logits are not the product of the two.
        """
        if self._recorder is None:
            model, cut = self.teacher.model, self.sharded
            self._recorder = HeadRecorder(model, self.label, skip=True, copies=cut)
        logits = self.ask(microbatch, state, self._recorder)
        return self._recorder.take(logits), logits

    def run(self, microbatch: Microbatch, state: State, *, whole: bool) -> None:
        """Run the model for those who listen to its layers.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.
            whole: Whether its output is read too; otherwise a language model's head does not run.
        """
        around = nullcontext() if whole else without_logits(self.teacher.model)
        nothing = torch.empty(0)
        self.ask(microbatch, state, around, lambda output: nothing)

    def ask(
        self,
        microbatch: Microbatch,
        state: State,
        around: AbstractContextManager[Any],
        extract: Extract | None = None,
    ) -> Tensor:
        """Return the model's raw logits, without a graph and without a trace.

        Args:
            microbatch: What the student saw and answered; it is left unchanged.
            state: The Trainer's state.
            around: What its forward runs inside of.
            extract: Takes the logits out of its output; None for the usual way.
        """
        # fp8 off, as in Composer's own evaluation: it needs sizes divisible by 16
        precision = get_precision_context(
            state.precision, state.precision_config, fp8_autocast_enabled=False
        )
        extract = extract or partial(extract_logits, owner=self.label)
        alone = state.model is self.teacher.model  # while answers are written there is no student
        over = not alone and reads_over_borders(state.model, microbatch.view, state.outputs)
        if not alone:
            self._tell_of_packed(microbatch.view, over=over)
        call = partial(self.call, over_borders=True) if over else self.call
        with untouched_streams(microbatch.logits.device), torch.no_grad(), precision, around:
            with self._lending.lend(microbatch.view) as batch, modes_kept(self._common):
                try:
                    logits = self.teacher.forward(batch, call, extract)
                except Exception as error:
                    add_note(
                        error,
                        f"{self.label} failed on the student's batch. Other inputs go to it by "
                        "Teacher(..., input_fn=...), another type by Teacher(..., dtype=...).",
                    )
                    raise
            if self.sharded:
                reshard(self.teacher.model)
        # A teacher may turn gradients or inference mode on in its own forward
        return logits.clone() if logits.is_inference() else logits.detach()

    def _tell_of_packed(self, view: Any, *, over: bool) -> None:
        """Warn once where it can't read packed texts as the student does."""
        if self._told or self.teacher.input_fn is not None:
            return
        model = self.teacher.model
        is_told = names_read(model, view) is not None
        self._told = cannot_read(model, view, over=over, is_told=is_told)
        if self._told:
            ways = ("keeps such texts apart", "reads over their borders")
            _log.warning(
                "%s: position_ids begin anew within a row. The student %s, and this teacher %s: "
                "behind a row's first text it answers something else. Put one text in each row.",
                self.label,
                ways[over],
                ways[not over],
            )
