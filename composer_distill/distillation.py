"""The ``Distillation`` algorithm: its arguments, and who its teachers are."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from composer.core import Algorithm, Event, State, Time
from composer.loggers import Logger
from torch import Tensor, nn

from composer_distill.losses import FusedLinearKL
from composer_distill.schedule import Weight, Window, to_time, weight_now
from composer_distill.teachers.roster import AnyTeacher, labels_of, to_teachers
from composer_distill.teachers.sharding import Sharding
from composer_distill.telemetry.observer import Observer
from composer_distill.terms.features.companions import Companions
from composer_distill.terms.features.matching import matching_terms
from composer_distill.terms.features.term import FeatureTerm
from composer_distill.terms.fused import FusedTerm
from composer_distill.terms.judging import TeacherJudge, check_judged, check_mask_fn
from composer_distill.terms.logits import LogitsTerm
from composer_distill.terms.panel import TeacherPanel
from composer_distill.terms.positions import MaskFn
from composer_distill.terms.protocol import Term
from composer_distill.terms.routing import check_all_answer
from composer_distill.terms.sparse import SparseTerm, check_not_evaluated, is_sparse
from composer_distill.terms.student import StudentReader
from composer_distill.terms.vocabulary import check_vocab_size
from composer_distill.training.arguments import (
    check_choices,
    check_feature_terms,
    check_loss,
    check_sample_size,
    check_seed,
    check_weights,
    describe_call,
)
from composer_distill.training.companions import CompanionTrainer, MakeOptimizer
from composer_distill.training.evaluation import TeacherEvaluation
from composer_distill.training.events import EventHandlers
from composer_distill.training.logbook import Logbook
from composer_distill.training.record import compare, written

Teachers = (
    nn.Module
    | AnyTeacher
    | Sequence[nn.Module | AnyTeacher]
    | Mapping[str, nn.Module]
    | Mapping[Path, nn.Module]
)
"""A model, several, or checkpoints and the models that their weights go into."""


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
            or a :class:`.Teacher` with options. They are frozen and kept in eval mode. Or a
            :class:`.CachedTeacher`, whose answers were kept.
        kd_loss_fn: Any callable ``(student, teacher) -> tensor`` of logits, such as
            :class:`.KLDivergence` or ``torch.nn.MSELoss()``. More than one value is averaged.
            Or :class:`.FusedLinearKL` for language models: it reads hidden states instead, so that
            no teacher's logits exist.
            None to train on ``feature_terms`` alone.
        kd_loss_weight: Weight of the distillation term: a number, or a schedule, which is any
            callable of the Trainer's ``State``; Composer's schedulers are such.
        org_loss_weight: Weight of the student's own loss inside the window: likewise.
        start_dur: First moment at which distillation acts: a fraction of training, a Composer time
            string such as ``'200ba'``, or a ``Time``. Exact to the batch.
        end_dur: First moment at which it no longer acts.
        n_teachers_to_sample: How many distinct teachers answer each batch; None: all of them.
        route_by: The entry of a batch, a list of one name a sample, that says which teacher answers
            each; teachers of one name share a sample, and ``''`` is nobody. See also
            ``Teacher(..., route=...)``.
        feature_terms: Layers of the student that are compared with layers of the teachers, each a
            :class:`FeatureTerm` with a weight of its own.
        projector_optimizer: Makes an optimizer of a projector's parameters, such as
            ``lambda parameters: AdamW(parameters, lr=1e-3)``. None: one of the student's kind, with
            the learning rate that the student has in each batch.
        combine: How several answers become one target: ``'logits'``, their weighted mean, or
            ``'probabilities'``, the mixture whose forward KL has the gradient of the mean of the
            per-teacher forward KLs; it needs a ``kd_loss_fn`` that has a ``temperature``.
        seed: Seed of the draw of teachers. Nothing else depends on it.
        student_output_fn: Takes the logits out of the student's output where they are not a
            tensor, ``'logits'`` or the first tensor of a tuple.
        mask_fn: Which positions count: any ``(batch, outputs) -> bool tensor or None``, such as
            :func:`loss_positions`, :func:`attended_positions` or :func:`all_positions`. None: those
            that carry the task's loss for causal and vision-language models and encoder-decoders,
            the attended ones for masked LMs and classification per token, all elsewhere. Which
            label a position predicts, the student's own loss tells. ``kd_loss_fn`` and all that is
            logged see the kept positions alone, as rows ``(K, C)``. ``teacher_correct`` and
            ``teacher_confident(0.5)`` leave those out where the teacher is wrong, or unsure.
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
        overlap: Whether the first teacher of each batch computes while the student still does, on a
            second CUDA stream, to the same result. It takes memory for both at once. Without effect
            on a CPU, and for teachers that are cut, cached, routed or the student's own base.

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

    teacher_sharding: Sharding

    def __init__(
        self,
        teachers: Teachers,
        kd_loss_fn: Callable[[Tensor, Tensor], Tensor] | FusedLinearKL | None,
        kd_loss_weight: Weight = 0.9,
        org_loss_weight: Weight = 0.1,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        n_teachers_to_sample: int | None = None,
        *,
        route_by: str | None = None,
        feature_terms: Sequence[FeatureTerm] = (),
        projector_optimizer: MakeOptimizer | None = None,
        combine: Literal["logits", "probabilities"] = "logits",
        seed: int = 0,
        student_output_fn: Callable[[Any], Any] | None = None,
        mask_fn: MaskFn | TeacherJudge | None = None,
        vocab_size: int | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        eval_teachers: bool = False,
        telemetry: bool = True,
        verify_teachers: bool = True,
        teacher_sharding: Sharding = "auto",
        overlap: bool = False,
    ) -> None:
        self.feature_terms = check_feature_terms(feature_terms, on_nonfinite)
        check_loss(kd_loss_fn, combine, needed=not self.feature_terms)
        check_weights(kd_loss_weight, org_loss_weight, alone=not self.feature_terms)
        check_choices(on_nonfinite, teacher_sharding)
        self.window = Window(to_time(start_dur, "start_dur"), to_time(end_dur, "end_dur"))
        self.teachers, self.route_by = to_teachers(teachers), route_by
        self.kd_loss_fn, self.combine, self.on_nonfinite = kd_loss_fn, combine, on_nonfinite
        self.kd_loss_weight, self.org_loss_weight = kd_loss_weight, org_loss_weight
        self.n_teachers_to_sample = check_sample_size(n_teachers_to_sample, len(self.teachers))
        self.seed, self.vocab_size = check_seed(seed), check_vocab_size(vocab_size)
        self.student_output_fn, self.projector_optimizer = student_output_fn, projector_optimizer
        self.mask_fn = mask_fn if isinstance(mask_fn, TeacherJudge) else check_mask_fn(mask_fn)
        self.telemetry, self.overlap, self.teacher_sharding = telemetry, overlap, teacher_sharding
        self.eval_teachers, self.verify_teachers = eval_teachers, verify_teachers
        self._text, self._events = self._described(), self._answering()

    def _answering(self) -> EventHandlers:
        """Return what answers the events."""
        panel = TeacherPanel(
            self.teachers,
            self.n_teachers_to_sample,
            self.seed,
            self.combine,
            self.route_by,
            overlap=self.overlap,
        )
        judge = self.mask_fn if isinstance(self.mask_fn, TeacherJudge) else None
        mask_fn = None if isinstance(self.mask_fn, TeacherJudge) else self.mask_fn
        reader = StudentReader(self.student_output_fn, mask_fn, self.vocab_size)
        loss, weight, on_nonfinite = self.kd_loss_fn, self._kd_weight, self.on_nonfinite
        check_judged(judge, loss)
        check_all_answer(self, panel.routing, is_sparse(self.teachers))
        fused = loss if isinstance(loss, FusedLinearKL) else None
        observed = self.telemetry and loss is not None
        observer = Observer(panel.labels, panel.own) if observed else None
        logits = LogitsTerm(panel, reader, loss, weight, observer, on_nonfinite, judge)
        terms: list[Term] = []
        if fused is not None:
            terms.append(FusedTerm(panel, reader, fused, weight, observer, on_nonfinite))
        elif loss is not None and is_sparse(self.teachers):
            check_not_evaluated(self.eval_teachers)
            terms.append(SparseTerm(logits, loss, weight))
        elif loss is not None:
            terms.append(logits)
        companions = Companions()
        terms += matching_terms(self.feature_terms, panel, self, companions)
        trainer = CompanionTrainer(
            companions, self.projector_optimizer, trains=bool(self.feature_terms)
        )
        evaluation = TeacherEvaluation(logits) if self.eval_teachers else None
        return EventHandlers(self, panel, terms, Logbook(panel, observer), evaluation, trainer)

    def _kd_weight(self, state: State) -> float:
        return weight_now(self.kd_loss_weight, state, "kd_loss_weight")

    @property
    def companions(self) -> dict[str, nn.Module]:
        """What trains beside the student, projectors above all, by term, teacher and layer."""
        return dict(self._events.companions.companions.modules)

    def match(self, event: Event, state: State) -> bool:
        """Return whether ``apply`` has something to do at ``event``."""
        return self._events.match(event, state)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do what ``event`` asks for; Composer calls this where ``match`` says so."""
        self._events.apply(event, state, logger)

    def state_dict(self) -> dict[str, Any]:
        """Return plain types that tell who the teachers are, for a resumed run to compare."""
        return {**super().state_dict(), **written(self._events.peers)}

    def load_state_dict(self, state: dict[str, Any], strict: bool = False) -> None:
        """Compare the teachers with those of the run that wrote the checkpoint.

        Composer hands every instance of one class the state of the last one, which tells of all.

        Raises:
            ValueError: If they differ and ``verify_teachers`` is set.
        """
        compare(state, self._events.peers)

    def __repr__(self) -> str:
        """Describe the arguments, without memory addresses."""
        # Composer asks for it at each event of each batch, so it is made once
        return self._text

    def _described(self) -> str:
        return describe_call(
            "Distillation",
            teachers=list(labels_of(self.teachers)),
            kd_loss_fn=self.kd_loss_fn,
            **({"feature_terms": list(self.feature_terms)} if self.feature_terms else {}),
            kd_loss_weight=self.kd_loss_weight,
            org_loss_weight=self.org_loss_weight,
            start_dur=self.window.start.to_timestring(),
            end_dur=self.window.end.to_timestring(),
            n_teachers_to_sample=self.n_teachers_to_sample,
            combine=self.combine,
            seed=self.seed,
        )
