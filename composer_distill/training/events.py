"""What ``Distillation`` does at each event: the only file to answer events, write State or log."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from composer_distill.schedule import Weight, Window, weight_now
from composer_distill.teachers.roster import (
    AnyTeacher,
    check_alike_on_ranks,
    check_apart,
    check_followed_once,
)
from composer_distill.teachers.sharding import Sharding
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.protocol import Term
from composer_distill.training.blending import Contribution
from composer_distill.training.companions import CompanionTrainer
from composer_distill.training.evaluation import TeacherEvaluation
from composer_distill.training.given import GivenAnswer, GivenBatch
from composer_distill.training.logbook import Logbook
from composer_distill.training.memory import agree_on_memory
from composer_distill.training.record import keep_under_one_name
from composer_distill.training.untrained import warn_of_untrained

_log = logging.getLogger(__name__)

Answer = Callable[[State, Logger], None]
"""What is done at an event."""


class Settings(Protocol):
    """What of ``Distillation`` is read here; weights and window may change while a run goes on."""

    teachers: tuple[AnyTeacher, ...]
    kd_loss_fn: Any
    org_loss_weight: Weight
    window: Window
    teacher_sharding: Sharding
    verify_teachers: bool


class EventHandlers:
    """Answers the events for one instance of ``Distillation``.

    Args:
        settings: The instance.
        panel: The teachers.
        terms: What is added to the student's own loss, each with its weight.
        book: Gathers a batch's values.
        evaluation: Lets the teachers answer evaluation sets; None where they do not.
        companions: Trains what trains beside the student.
    """

    def __init__(
        self,
        settings: Settings,
        panel: TeacherPanel,
        terms: Sequence[Term],
        book: Logbook,
        evaluation: TeacherEvaluation | None,
        companions: CompanionTrainer,
    ) -> None:
        self._settings = settings
        self._panel = panel
        self._terms = tuple(terms)
        self._listeners = [term for term in self._terms if term.listens]
        self._book = book
        self.companions = companions
        self._evaluates = evaluation is not None
        self._inside: bool | None = None  # the window, as of the batch that began last
        # Known from INIT on
        self.peers: list[EventHandlers] = [self]
        self.identities: list[str] = []
        self.former_identities: list[str] = []
        self._joins_late = False
        # Of the current microbatch
        self._given = GivenBatch()
        self._answer = GivenAnswer(None)
        self._contribution = Contribution()
        self._is_open = False  # from its forward until its batch has been passed over
        self._handlers = self._answers(evaluation)

    def _answers(self, evaluation: TeacherEvaluation | None) -> dict[Event, Answer]:
        """Return what each event asks for."""
        answers: dict[Event, Answer] = {
            Event.INIT: self._prepare,
            Event.FIT_START: self._check_run,
            Event.BEFORE_TRAIN_BATCH: self._start_pass,
            Event.BEFORE_FORWARD: self._listen,
            Event.AFTER_FORWARD: self._end_forward,
            Event.BEFORE_LOSS: self._remember_answer,
            Event.AFTER_LOSS: self._distil,
            Event.BEFORE_BACKWARD: self._join,
            Event.AFTER_TRAIN_BATCH: self._end_pass,
            Event.BATCH_END: self._log,
        }
        if evaluation is not None:
            answers |= {
                Event.EVAL_START: evaluation.start,
                Event.EVAL_BEFORE_FORWARD: evaluation.begin,
                Event.EVAL_AFTER_FORWARD: evaluation.update,
                Event.EVAL_END: partial(self._log_evaluation, evaluation),
            }
        return answers

    def match(self, event: Event, state: State) -> bool:
        """Return whether ``apply`` has something to do at ``event``."""
        of_forward = event is Event.BEFORE_FORWARD or event is Event.AFTER_FORWARD
        if of_forward or event is Event.BEFORE_LOSS or event is Event.AFTER_LOSS:  # not ==
            return self._acts(state)
        if event is Event.BEFORE_BACKWARD:
            return self._joins_late and self._acts(state)
        if event is Event.BEFORE_TRAIN_BATCH:
            if self._is_open or self._acts(state) is not self._inside:
                return True
            return self._panel.moves(state)
        if event is Event.AFTER_TRAIN_BATCH:
            return self._inside is not False
        if event is Event.BATCH_END:
            return self._inside is not False or bool(self._panel.followers)
        return event in self._handlers

    def _acts(self, state: State) -> bool:
        """Return whether the window is open, and that of any teacher."""
        return self._settings.window.contains(state) and self._panel.awake(state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do what ``event`` asks for."""
        self._handlers[event](state, logger)

    @property
    def position(self) -> int:
        """Which of the instances in its Trainer this one is."""
        return self.peers.index(self)

    @property
    def followed(self) -> dict[str, Any]:
        """What teachers that are made of the student need in a resumed run."""
        return self._panel.state_dict()

    def follow_on(self, saved: dict[str, Any]) -> None:
        """Let them go on where the run stopped that wrote a checkpoint."""
        self._panel.load_state_dict(saved)

    @property
    def verifies(self) -> bool:
        """Whether a run that is resumed with other teachers is an error."""
        return self._settings.verify_teachers

    def _prepare(self, state: State, logger: Logger) -> None:
        """INIT: check the teachers against the student, freeze them, move them."""
        settings = self._settings
        check_apart(settings.teachers, state.model, state.optimizers or ())
        self.companions.forget()
        self.identities = [teacher.identity() for teacher in settings.teachers]
        self.former_identities = [teacher.former_identity() for teacher in settings.teachers]
        check_alike_on_ranks(self.identities, self._panel.labels)
        for term in self._terms:
            term.prepare(state)
        self._panel.prepare(state, settings.teacher_sharding)
        if isinstance(settings.kd_loss_fn, nn.Module):
            state.device.module_to_device(settings.kd_loss_fn)
        self._inside, self._given = None, GivenBatch()
        found = [_handlers_of(algorithm) for algorithm in state.algorithms]
        self.peers = [handlers for handlers in found if handlers is not None]
        check_followed_once([peer._settings.teachers for peer in self.peers])
        self._book.position = self.position
        keep_under_one_name(state, self.peers)
        # MixUp and CutMix may re-blend the loss at BEFORE_BACKWARD: then the term joins after them
        self._joins_late = any(getattr(a, "interpolate_loss", False) for a in state.algorithms)
        if self._joins_late:
            state.algorithms.sort(key=lambda algorithm: _handlers_of(algorithm) is not None)

    def _check_run(self, state: State, logger: Logger) -> None:
        """FIT_START: check what is known only now, and begin with nothing noted."""
        settings = self._settings
        check_apart(settings.teachers, state.model, state.optimizers or ())
        warn_of_untrained(settings.kd_loss_fn, state.optimizers or ())
        settings.window.check(state)
        self._panel.check(state)
        self._book.forget()  # a fit that was interrupted in a batch may have left something
        self._forget_batch()
        self._panel.follow(state, acting=settings.window.contains(state))
        idle = [repr(settings)] if settings.window.is_idle(state) else []
        for name in idle or self._panel.idle(state, settings.window):
            _log.warning(
                "%s will not act in this training: its start_dur lies at or behind an end_dur or "
                "the end of training. Give an earlier start_dur.",
                name,
            )

    def _start_pass(self, state: State, logger: Logger) -> None:
        """BEFORE_TRAIN_BATCH: the window opens or closes, or a pass cut off begins anew."""
        self._book.start_pass()
        self._forget_batch()
        inside = self._acts(state)
        if inside != bool(self._inside):
            verb = "begins to act" if inside else "no longer acts"
            _log.info("%s %s at batch %d", self._settings, verb, int(state.timestamp.batch))
        self._inside = inside
        if self._settings.window.is_over(state) and not self._evaluates:
            self._panel.leave()
        else:
            self._panel.settle(state, keep=self._evaluates)

    def _listen(self, state: State, logger: Logger) -> None:
        """BEFORE_FORWARD: some terms need more than the student's output, some teachers begin."""
        self._is_open = True
        self._given.listen(state)
        self._panel.look_ahead(state)
        for term in self._listeners:
            term.start_forward(state)

    def _end_forward(self, state: State, logger: Logger) -> None:
        """AFTER_FORWARD: listen to the student no more."""
        self._given.end(state.batch)
        for term in self._listeners:
            term.end_forward()
        self._contribution = Contribution()

    def _remember_answer(self, state: State, logger: Logger) -> None:
        """BEFORE_LOSS: keep what the student's loss is given, which may take entries out of it."""
        self._answer = GivenAnswer(state.outputs)

    def _distil(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS: measure the terms, and join them unless the loss is yet to be mixed."""
        ours, settings = self._contribution, self._settings
        ours.org_weight = weight_now(settings.org_loss_weight, state, "org_loss_weight")
        weights = {term.weight_name: term.weight(state) for term in self._terms}
        self._book.note_weights(weights, ours.org_weight)
        acting = [term for term in self._terms if weights[term.weight_name] > 0.0]
        if acting:
            view, outputs = self._given.as_given(), self._answer.as_given()
            trust_labels = ours.org_weight > 0.0  # else they may be placeholders
            for term in acting:
                measured = term.measure(state, view, outputs, trust_labels=trust_labels)
                ours.add(measured, weights[term.weight_name])
            agree_on_memory(state)
        self._answer = GivenAnswer(None)
        if not self._joins_late:
            self._join(state, logger)

    def _join(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS or BEFORE_BACKWARD: blend the term into the loss that Composer trains."""
        ours = self._contribution
        state.loss = ours.join(state.loss, [peer._contribution for peer in self.peers])
        if ours.term is not None and ours.task is not None:
            values = ours.values | {"loss/train/org": ours.task}
            self._book.note_on_backward(ours.term, values, ours.count, state)

    def _end_pass(self, state: State, logger: Logger) -> None:
        """AFTER_TRAIN_BATCH: stop on a broken teacher before the optimizer's step."""
        for term in self._terms:
            term.check(int(state.timestamp.batch))
        self.companions.end_pass(state)
        self._book.complete_pass()
        self._forget_microbatch()

    def _forget_microbatch(self) -> None:
        """Keep nothing of the last microbatch: no tensor outlives it, and copies can be made."""
        self._answer, self._contribution, self._is_open = GivenAnswer(None), Contribution(), False
        self._given.forget()
        for term in self._listeners:
            term.end_forward()

    def _forget_batch(self) -> None:
        """Keep nothing of a batch that ended, or of a pass that did not complete."""
        self._forget_microbatch()
        self._panel.forget()
        self.companions.forget_batch()
        for term in self._terms:
            term.forget()

    def _log(self, state: State, logger: Logger) -> None:
        """BATCH_END: log one value a batch, the same on every rank."""
        self._panel.follow(state, acting=self._settings.window.contains(state))
        if self._inside is False:
            return
        metrics = self._book.take(state)
        self.companions.step(state)
        self._forget_batch()
        if metrics:
            step = int(state.previous_timestamp.batch) if state.previous_timestamp else None
            logger.log_metrics(metrics, step=step)

    def _log_evaluation(self, evaluation: TeacherEvaluation, state: State, logger: Logger) -> None:
        """EVAL_END: log the values of an evaluation set."""
        logger.log_metrics(self._book.named(evaluation.finish(state)))


def _handlers_of(algorithm: Algorithm) -> EventHandlers | None:
    """Return the handlers of an instance of ``Distillation``, None of any other algorithm."""
    found = getattr(algorithm, "_events", None)
    return found if isinstance(found, EventHandlers) else None
