"""The ``Distillation`` algorithm: the only file that answers Events, writes State or logs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from composer.core import Algorithm, Event, State, Time
from composer.loggers import Logger
from torch import Tensor, nn

from composer_distill.arguments import (
    check_choice,
    check_loss,
    check_not_all_zero,
    check_sample_size,
    check_seed,
    describe_call,
)
from composer_distill.blending import Contribution
from composer_distill.evaluation import TeacherEvaluation
from composer_distill.fused_term import FusedTerm
from composer_distill.logbook import Logbook
from composer_distill.losses import FusedLinearKL
from composer_distill.observer import Observer
from composer_distill.panel import TeacherPanel, agree_on_memory
from composer_distill.positions import MaskFn, check_mask_fn
from composer_distill.schedule import Weight, Window, check_weight, to_time, weight_now
from composer_distill.teachers import Teacher
from composer_distill.teachers.roster import check_apart, check_same, to_teachers
from composer_distill.teachers.sharding import Sharding
from composer_distill.teachers.splitting import shallow_copy
from composer_distill.term import DistillationTerm
from composer_distill.vocabulary import check_vocab_size

_log = logging.getLogger(__name__)


class Distillation(Algorithm):
    """Train a student on its teachers' answers as well as on its own loss.

    After the student's loss the sampled teachers answer the same batch, without gradients, in the
    Trainer's precision and on its device, and Composer trains
    ``org_loss_weight * loss + kd_loss_weight * kd_loss_fn(student_logits, teacher_logits)``.
    Outside ``start_dur <= now < end_dur`` the student's loss stays untouched and no teacher runs.

    Each active batch logs ``loss/train/kd`` and ``loss/train/org`` (both unweighted),
    ``distillation/kd_loss_weight``, ``distillation/org_loss_weight`` and
    ``distillation/agreement``, the share of positions where student and teachers put the same class
    first. Values are weighted over microbatches as Composer trains them and reduced over ranks.

    Args:
        teachers: A trained model; a sequence of models; or a mapping of checkpoint to model, whose
            weights are loaded. A model is a ``ComposerModel``, a plain module, a Hugging Face model
            or a :class:`Teacher` with options. They are frozen and kept in eval mode.
        kd_loss_fn: Any callable ``(student, teacher) -> tensor`` of logits, such as
            :class:`.KLDivergence` or ``torch.nn.MSELoss()``. More than one value is averaged.
            Or :class:`.FusedLinearKL` for language models: it reads hidden states instead, so that
            no teacher's logits exist, and of what is logged the losses and weights alone are left.
        kd_loss_weight: Weight of the distillation term: a number, or a schedule, which is any
            callable of the Trainer's ``State``; Composer's schedulers are such.
        org_loss_weight: Weight of the student's own loss inside the window: likewise.
        start_dur: First moment at which distillation acts: a fraction of training, a Composer time
            string such as ``'200ba'``, or a ``Time``. Exact to the batch.
        end_dur: First moment at which it no longer acts.
        n_teachers_to_sample: How many distinct teachers answer each batch; None: all of them.
        combine: How several answers become one target: ``'logits'``, their weighted mean, or
            ``'probabilities'``, the mixture whose forward KL has the gradient of the mean of the
            per-teacher forward KLs; it needs a ``kd_loss_fn`` that has a ``temperature``.
        seed: Seed of the draw of teachers. Nothing else depends on it.
        student_output_fn: Takes the logits out of the student's output where they are not a
            tensor, ``'logits'`` or the first tensor of a tuple.
        mask_fn: Which positions count: any ``(batch, outputs) -> bool tensor or None``, such as
            :func:`loss_positions`, :func:`attended_positions` or :func:`all_positions`. None: those
            that carry the task's loss for causal LMs and encoder-decoders, the attended ones for
            masked LMs and classification per token, all elsewhere. ``kd_loss_fn`` and all that is
            logged see the kept positions alone, as rows ``(K, C)``.
        vocab_size: How many of the classes are real, for models that pad their vocabularies: both
            logits are cut to these before any softmax. None: all.
        on_nonfinite: What a teacher's NaN or infinity does: ``'raise'`` stops the run before the
            optimizer's step; ``'skip'`` leaves the term out for that microbatch and logs the share
            of the batch left out as ``distillation/skipped``.
        eval_teachers: Whether the teachers answer the evaluation sets too, which logs
            ``metrics/<set>/teacher_agreement``, ``metrics/<set>/teacher_kl`` (nats, temperature 1)
            and, as ``metrics/<set>/teacher/<metric>``, their values of the student's metrics. It
            costs their forward on each set.
        telemetry: Whether each batch also logs ``distillation/kl`` (nats, temperature 1, whatever
            the loss), ``student_entropy`` and ``teacher_entropy`` (nats), ``teacher_time`` (share
            of the batch's wall clock) and, with several teachers, ``kd_loss/teacher_<i>``; and
            whether a teacher is warned of that knows the labels no better than chance, or returns
            probabilities. It costs two passes over the logits without gradients.
        verify_teachers: Whether resuming a run with other teachers is an error.
        teacher_sharding: Whether each rank holds whole teachers (``'replicated'``) or they are cut
            as the student is under FSDP (``'sharded'``); ``'auto'`` cuts those of more than 1e9
            parameters where the student is cut.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or a checkpoint does not fit.

    Reference:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531; sampling of teachers and ``end_dur``:
        Blakeney et al. 2022, arXiv 2211.00683.

    Example:
        >>> import torch
        >>> from composer_distill import Distillation, KLDivergence
        >>> teacher = torch.nn.Linear(64, 10)
        >>> algorithm = Distillation(teacher, KLDivergence(temperature=4.0), end_dur=0.5)
    """

    def __init__(
        self,
        teachers: nn.Module
        | Teacher
        | Sequence[nn.Module | Teacher]
        | Mapping[str, nn.Module]
        | Mapping[Path, nn.Module],
        kd_loss_fn: Callable[[Tensor, Tensor], Tensor] | FusedLinearKL,
        kd_loss_weight: Weight = 0.9,
        org_loss_weight: Weight = 0.1,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        n_teachers_to_sample: int | None = None,
        *,
        combine: Literal["logits", "probabilities"] = "logits",
        seed: int = 0,
        student_output_fn: Callable[[Any], Any] | None = None,
        mask_fn: MaskFn | None = None,
        vocab_size: int | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        eval_teachers: bool = False,
        telemetry: bool = True,
        verify_teachers: bool = True,
        teacher_sharding: Sharding = "auto",
    ) -> None:
        check_loss(kd_loss_fn, combine)
        check_weight(kd_loss_weight, "kd_loss_weight")
        check_weight(org_loss_weight, "org_loss_weight")
        check_not_all_zero(kd_loss_weight, org_loss_weight)
        check_choice(on_nonfinite, "on_nonfinite", ("raise", "skip"))
        check_choice(teacher_sharding, "teacher_sharding", ("auto", "replicated", "sharded"))
        self.window = Window(to_time(start_dur, "start_dur"), to_time(end_dur, "end_dur"))
        self.teachers = to_teachers(teachers)
        self.kd_loss_fn = kd_loss_fn
        self.kd_loss_weight = kd_loss_weight
        self.org_loss_weight = org_loss_weight
        self.n_teachers_to_sample = check_sample_size(n_teachers_to_sample, len(self.teachers))
        self.combine = combine
        self.seed = check_seed(seed)
        self.student_output_fn = student_output_fn
        self.mask_fn = mask_fn
        self.vocab_size = vocab_size
        self.on_nonfinite = on_nonfinite
        self.eval_teachers = eval_teachers
        self.telemetry = telemetry
        self.verify_teachers = verify_teachers
        self.teacher_sharding: Sharding = teacher_sharding
        self._panel = TeacherPanel(self.teachers, self.n_teachers_to_sample, self.seed, combine)
        fused = kd_loss_fn if isinstance(kd_loss_fn, FusedLinearKL) else None
        observer = Observer(self._panel.labels) if telemetry and fused is None else None
        self._distance = DistillationTerm(
            self._panel,
            kd_loss_fn,
            observer,
            on_nonfinite == "skip",
            student_output_fn,
            check_mask_fn(mask_fn),
            check_vocab_size(vocab_size),
        )
        self._fused = None if fused is None else FusedTerm(self._distance, fused, on_nonfinite)
        self._book = Logbook(self._panel, observer)
        self._evaluation = TeacherEvaluation(self._distance)
        self._inside: bool | None = None  # the window, as of the batch that began last
        # Known from INIT on
        self._peers: list[Distillation] = [self]
        self._identities: list[str] = []
        self._joins_late = False
        # Of the current microbatch
        self._view: Any = None
        self._contribution = Contribution()
        self._in_pass = False  # over a batch: begun, and not at its end
        # Composer asks for it at each event of each batch, so it is made once
        self._text = describe_call(
            "Distillation",
            teachers=list(self._panel.labels),
            kd_loss_fn=kd_loss_fn,
            kd_loss_weight=kd_loss_weight,
            org_loss_weight=org_loss_weight,
            start_dur=self.window.start.to_timestring(),
            end_dur=self.window.end.to_timestring(),
            n_teachers_to_sample=self.n_teachers_to_sample,
            combine=combine,
            seed=self.seed,
        )
        self._handlers: dict[Event, Callable[[State, Logger], None]] = {
            Event.INIT: self._prepare,
            Event.FIT_START: self._check_run,
            Event.BEFORE_TRAIN_BATCH: self._start_pass,
            Event.BEFORE_FORWARD: self._listen,
            Event.AFTER_FORWARD: self._remember_view,
            Event.AFTER_LOSS: self._distil,
            Event.BEFORE_BACKWARD: self._join,
            Event.AFTER_TRAIN_BATCH: self._end_pass,
            Event.BATCH_END: self._log,
        }
        if eval_teachers:
            self._handlers |= {
                Event.EVAL_START: self._evaluation.start,
                Event.EVAL_AFTER_FORWARD: self._evaluation.update,
                Event.EVAL_END: self._log_evaluation,
            }

    def match(self, event: Event, state: State) -> bool:
        """Return whether ``apply`` has something to do at ``event``."""
        if event is Event.BEFORE_FORWARD:  # == of these costs more, and comes 13 times a batch
            return self._fused is not None and self.window.contains(state)
        if event is Event.AFTER_FORWARD or event is Event.AFTER_LOSS:
            return self.window.contains(state)
        if event is Event.BEFORE_BACKWARD:
            return self._joins_late and self.window.contains(state)
        if event is Event.BEFORE_TRAIN_BATCH:
            return self._in_pass or self.window.contains(state) is not self._inside
        if event is Event.AFTER_TRAIN_BATCH or event is Event.BATCH_END:
            return self._inside is not False
        return event in self._handlers

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do what ``event`` asks for; Composer calls this where ``match`` says so."""
        self._handlers[event](state, logger)

    def _prepare(self, state: State, logger: Logger) -> None:
        """INIT: check the teachers against the student, freeze them, move them."""
        check_apart(self.teachers, state.model, state.optimizers or ())
        self._identities = [teacher.identity() for teacher in self.teachers]
        self._distance.prepare(state.model)
        if self._fused is not None:
            self._fused.prepare(state)
        self._panel.prepare(state, self.teacher_sharding)
        if isinstance(self.kd_loss_fn, nn.Module):
            state.device.module_to_device(self.kd_loss_fn)
        self._peers = [peer for peer in state.algorithms if isinstance(peer, Distillation)]
        self._book.position = self._peers.index(self)
        # MixUp and CutMix may re-blend the loss at BEFORE_BACKWARD: then the term joins after them
        self._joins_late = any(getattr(a, "interpolate_loss", False) for a in state.algorithms)
        if self._joins_late:
            state.algorithms.sort(key=lambda algorithm: isinstance(algorithm, Distillation))

    def _check_run(self, state: State, logger: Logger) -> None:
        """FIT_START: check what is known only now, and begin with nothing noted."""
        check_apart(self.teachers, state.model, state.optimizers or ())
        self.window.check(state)
        self._book.forget()  # a fit that was interrupted in a batch may have left something
        self._panel.forget()
        if self.window.is_idle(state):
            _log.warning(
                "%s will not act in this training: start_dur lies at or behind its end_dur or the "
                "end of training. Give an earlier start_dur.",
                self,
            )

    def _start_pass(self, state: State, logger: Logger) -> None:
        """BEFORE_TRAIN_BATCH: the window opens or closes, or a pass cut off begins anew."""
        self._book.start_pass()
        self._panel.forget()
        self._view, self._contribution, self._in_pass = None, Contribution(), False
        inside = self.window.contains(state)
        if inside != bool(self._inside):
            verb = "begins to act" if inside else "no longer acts"
            _log.info("%s %s at batch %d", self, verb, int(state.timestamp.batch))
        self._inside = inside
        if inside:
            self._panel.settle()
        elif not self.eval_teachers and self.window.is_over(state):
            self._panel.leave()

    def _listen(self, state: State, logger: Logger) -> None:
        """BEFORE_FORWARD: the fused loss needs the student's hidden states."""
        self._in_pass = True
        if self._fused is not None:
            self._fused.start_forward()

    def _remember_view(self, state: State, logger: Logger) -> None:
        """AFTER_FORWARD: keep the view that the student saw, before labels are smoothed."""
        if self._fused is not None:
            self._fused.end_forward()
        self._in_pass, self._view = True, shallow_copy(state.batch)
        self._contribution = Contribution()

    def _distil(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS: run the teachers, and join their term unless the loss is yet to be mixed."""
        ours = self._contribution
        ours.org_weight = weight_now(self.org_loss_weight, state, "org_loss_weight")
        kd_weight = weight_now(self.kd_loss_weight, state, "kd_loss_weight")
        self._book.note_weights(kd_weight, ours.org_weight)
        if kd_weight > 0.0:
            view = shallow_copy(state.batch) if self._view is None else self._view
            trust_labels = ours.org_weight > 0.0  # else they may be placeholders
            term = self._distance if self._fused is None else self._fused
            distance, ours.values, ours.count = term.measure(state, view, trust_labels=trust_labels)
            agree_on_memory(state)
            ours.term, self._view = distance * kd_weight, None
        if not self._joins_late:
            self._join(state, logger)

    def _join(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS or BEFORE_BACKWARD: blend the term into the loss that Composer trains."""
        ours = self._contribution
        state.loss = ours.join(state.loss, [peer._contribution for peer in self._peers])
        if ours.term is not None and ours.task is not None:
            values = ours.values | {"loss/train/org": ours.task}
            self._book.note_on_backward(ours.term, values, ours.count, state)

    def _end_pass(self, state: State, logger: Logger) -> None:
        """AFTER_TRAIN_BATCH: stop on a broken teacher before the optimizer's step."""
        if self.on_nonfinite == "raise":
            self._panel.check_finite(int(state.timestamp.batch))
        self._book.complete_pass()
        # So that nothing outlives the batch, and the algorithm can be copied
        self._view, self._contribution, self._in_pass = None, Contribution(), False
        if self._fused is not None:
            self._fused.forget()

    def _log(self, state: State, logger: Logger) -> None:
        """BATCH_END: log one value a batch, the same on every rank."""
        metrics = self._book.take(state)
        self._panel.forget()
        if metrics:
            step = int(state.previous_timestamp.batch) if state.previous_timestamp else None
            logger.log_metrics(metrics, step=step)

    def _log_evaluation(self, state: State, logger: Logger) -> None:
        """EVAL_END: log the values of an evaluation set."""
        logger.log_metrics(self._book.named(self._evaluation.finish(state)))

    def state_dict(self) -> dict[str, Any]:
        """Return plain types that tell who the teachers are, for a resumed run to compare."""
        identities = {str(i): peer._identities for i, peer in enumerate(self._peers)}
        return {**super().state_dict(), "teachers": identities}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Compare the teachers with those of the run that wrote the checkpoint.

        Raises:
            ValueError: If they differ and ``verify_teachers`` is set.
        """
        # Composer hands every instance the state of the last one: each finds itself by position
        saved = state.get("teachers", {}).get(str(self._peers.index(self)))
        if self.verify_teachers and saved is not None:
            check_same(saved, self._identities)

    def __repr__(self) -> str:
        """Describe the arguments, without memory addresses."""
        return self._text
