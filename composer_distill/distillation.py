"""The ``Distillation`` algorithm: the only file that answers Events, writes State or logs."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from composer.core import Algorithm, Event, Precision, State, Time, get_precision_context
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from composer_distill.arguments import check_loss, check_sample_size, describe
from composer_distill.blending import blend, task_loss
from composer_distill.combining import mean_logits, mean_probabilities
from composer_distill.losses import DistillationLoss
from composer_distill.meters import BatchMeter
from composer_distill.outputs import call_model, check_shapes, copy_batch, extract_logits
from composer_distill.sampling import sample_teachers
from composer_distill.schedule import Weight, Window, check_weight, to_time, weight_now
from composer_distill.teachers import Teacher
from composer_distill.teachers.isolation import untouched_random_streams
from composer_distill.teachers.roster import check_apart, labels_of, to_teachers


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
            :class:`KLDivergence` or ``torch.nn.MSELoss()``. More than one value is averaged.
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

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range, or a checkpoint does not fit.

    Reference:
        Hinton, Vinyals and Dean 2015, arXiv 1503.02531; sampling of teachers and ``end_dur``:
        Blakeney et al. 2022, arXiv 2211.00683.

    Example:
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
        kd_loss_fn: Callable[[Tensor, Tensor], Tensor],
        kd_loss_weight: Weight = 0.9,
        org_loss_weight: Weight = 0.1,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        n_teachers_to_sample: int | None = None,
        *,
        combine: Literal["logits", "probabilities"] = "logits",
        seed: int = 0,
        student_output_fn: Callable[[Any], Any] | None = None,
    ) -> None:
        check_loss(kd_loss_fn, combine)
        check_weight(kd_loss_weight, "kd_loss_weight")
        check_weight(org_loss_weight, "org_loss_weight")
        self.window = Window(to_time(start_dur, "start_dur"), to_time(end_dur, "end_dur"))
        self.teachers = to_teachers(teachers)
        check_sample_size(n_teachers_to_sample, len(self.teachers))
        self.kd_loss_fn = kd_loss_fn
        self.kd_loss_weight = kd_loss_weight
        self.org_loss_weight = org_loss_weight
        self.n_teachers_to_sample = n_teachers_to_sample
        self.combine = combine
        self.seed = seed
        self.student_output_fn = student_output_fn
        self._labels = labels_of(self.teachers)
        self._meter = BatchMeter()
        self._weights: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._forget_pass()
        self._answer: dict[Event, Callable[[State, Logger], None]] = {
            Event.INIT: self._prepare,
            Event.FIT_START: self._check_run,
            Event.BEFORE_TRAIN_BATCH: self._start_pass,
            Event.AFTER_FORWARD: self._remember_view,
            Event.AFTER_LOSS: self._distil,
            Event.AFTER_TRAIN_BATCH: self._end_pass,
            Event.BATCH_END: self._log,
        }

    def match(self, event: Event, state: State) -> bool:
        """Return whether ``apply`` has something to do at ``event``."""
        if event in (Event.AFTER_FORWARD, Event.AFTER_LOSS):
            return self.window.contains(state)
        return event in self._answer

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do what ``event`` asks for; Composer calls this where ``match`` says so."""
        self._answer[event](state, logger)

    def _prepare(self, state: State, logger: Logger) -> None:
        """INIT: check the teachers against the student, freeze them, move them."""
        check_apart(self.teachers, state.model, state.optimizers or ())
        self._device = state.device.tensor_to_device(torch.empty(0)).device
        for teacher in self.teachers:
            teacher.freeze()
            teacher.place(self._device)
        if isinstance(self.kd_loss_fn, nn.Module):
            state.device.module_to_device(self.kd_loss_fn)

    def _check_run(self, state: State, logger: Logger) -> None:
        """FIT_START: check what is known only now."""
        check_apart(self.teachers, state.model, state.optimizers or ())
        self.window.check(state)

    def _forget_pass(self) -> None:
        self._view: Any = None
        self._finite: dict[str, Tensor] = {}

    def _start_pass(self, state: State, logger: Logger) -> None:
        """BEFORE_TRAIN_BATCH: a batch begins, or begins again after running out of memory."""
        self._forget_pass()
        self._meter.start_pass()

    def _remember_view(self, state: State, logger: Logger) -> None:
        """AFTER_FORWARD: keep the view that the student saw, before labels are smoothed."""
        self._view = copy_batch(state.batch)

    def _distil(self, state: State, logger: Logger) -> None:
        """AFTER_LOSS: run the teachers and blend."""
        org_weight = weight_now(self.org_loss_weight, state, "org_loss_weight")
        kd_weight = weight_now(self.kd_loss_weight, state, "kd_loss_weight")
        self._weights = {
            "distillation/kd_loss_weight": kd_weight,
            "distillation/org_loss_weight": org_weight,
        }
        if kd_weight == 0.0:
            if org_weight != 1.0:
                state.loss = blend(state.loss, None, org_weight)
            return
        student = self._student_logits(state.outputs)
        teacher = self._target(state, student)
        distance = self._distance(student, teacher, state)
        term = distance * kd_weight
        values = {"loss/train/kd": distance, "loss/train/org": task_loss(state.loss)}
        values |= self._agreement(student, teacher)
        values = {name: value.detach() for name, value in values.items()}
        # The gradient that reaches the term is the share of the batch that Composer gives to this
        # microbatch, whether it counts samples or tokens.
        scale = _loss_scale(state, distance)
        term.register_hook(lambda share: self._meter.add(values, share / scale))
        state.loss = blend(state.loss, term, org_weight)
        self._view = None

    def _student_logits(self, outputs: Any) -> Tensor:
        if self.student_output_fn is not None:
            outputs = self.student_output_fn(outputs)
        return extract_logits(outputs, "the student")

    def _target(self, state: State, student: Tensor) -> Tensor:
        """Return the drawn teachers' answers to the microbatch, combined."""
        view = copy_batch(state.batch) if self._view is None else self._view
        drawn = sample_teachers(
            [teacher.weight for teacher in self.teachers],
            self.n_teachers_to_sample,
            self.seed,
            int(state.timestamp.batch),
        )
        answers = ((share, self._ask(index, view, state, student)) for index, share in drawn)
        with torch.no_grad():
            if self.combine == "logits":
                return mean_logits(answers)
            temperature = self.kd_loss_fn.temperature  # pyright: ignore[reportFunctionMemberAccess]
            return mean_probabilities(answers, temperature, self._class_axis())

    def _ask(self, index: int, view: Any, state: State, student: Tensor) -> Tensor:
        """Return one teacher's logits for ``view``, in eval mode and in the Trainer's precision."""
        label = self._labels[index]
        # fp8 off, as in Composer's own evaluation: it needs sizes divisible by 16
        precision = get_precision_context(
            state.precision, state.precision_config, fp8_autocast_enabled=False
        )
        with torch.no_grad(), precision, untouched_random_streams(self._device):
            logits = self.teachers[index].forward(
                view, call_model, partial(extract_logits, owner=label)
            )
        check_shapes(student, logits, label)
        if logits.numel():
            low, high = logits.aminmax()
            finite = torch.isfinite(low) & torch.isfinite(high)
            self._finite[label] = self._finite.get(label, finite) & finite
        return logits

    def _distance(self, student: Tensor, teacher: Tensor, state: State) -> Tensor:
        """Return the unweighted distillation loss, a scalar that leads back to the student."""
        if not isinstance(self.kd_loss_fn, DistillationLoss):
            dtype = torch.promote_types(student.dtype, torch.float32)
            student, teacher = student.to(dtype), teacher.to(dtype)
        distance = self.kd_loss_fn(student, teacher)
        if not isinstance(distance, Tensor):
            raise TypeError(
                f"kd_loss_fn must return a tensor, got {type(distance).__name__}. "
                "Do not call .item() or float() on it."
            )
        if not distance.requires_grad:
            raise ValueError(
                "kd_loss_fn must return a tensor with a gradient path to the student's logits, got "
                "one that requires no gradient. It is called as kd_loss_fn(student, teacher): do "
                "not detach its first argument."
            )
        return distance.mean()

    def _class_axis(self) -> int:
        """Return the axis that holds the classes; a softmax over axis 0 runs across positions."""
        axis = getattr(self.kd_loss_fn, "dim", -1)
        return axis if isinstance(axis, int) and axis != 0 else -1

    def _agreement(self, student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
        """Return the top-1 agreement of classification outputs, nothing for others."""
        axis = self._class_axis()
        if student.ndim < 2 or student.shape[axis] < 2 or not student.numel():
            return {}
        with torch.no_grad():
            same = student.max(axis).indices == teacher.max(axis).indices
            return {"distillation/agreement": same.float().mean()}

    def _end_pass(self, state: State, logger: Logger) -> None:
        """AFTER_TRAIN_BATCH: stop on a broken teacher before the optimizer's step."""
        if self._finite:
            labels = list(self._finite)
            finite = torch.stack([self._finite[label] for label in labels]).tolist()
            for label, is_finite in zip(labels, finite, strict=True):
                if not is_finite:
                    raise ValueError(
                        f"{label}: its logits hold NaN or infinity at batch "
                        f"{int(state.timestamp.batch)}. Check its checkpoint and the precision, or "
                        "map its outputs with Teacher(..., output_fn=...)."
                    )
        self._meter.complete_pass()
        self._forget_pass()

    def _log(self, state: State, logger: Logger) -> None:
        """BATCH_END: log one value a batch, the same on every rank."""
        metrics, self._weights = self._weights, {}
        values = self._meter.take()
        if values:
            stacked = torch.stack([value.reshape(()) for value in values.values()])
            dist.all_reduce(stacked)
            means = (stacked / dist.get_world_size()).tolist()
            metrics |= dict(zip(values, means, strict=True))
        if metrics:
            step = int(state.previous_timestamp.batch) if state.previous_timestamp else None
            logger.log_metrics(metrics, step=step)

    def __repr__(self) -> str:
        """Describe the arguments, without memory addresses."""
        return (
            f"Distillation(teachers={[teacher.name for teacher in self.teachers]}, "
            f"kd_loss_fn={describe(self.kd_loss_fn)}, "
            f"kd_loss_weight={describe(self.kd_loss_weight)}, "
            f"org_loss_weight={describe(self.org_loss_weight)}, "
            f"start_dur='{self.window.start.to_timestring()}', "
            f"end_dur='{self.window.end.to_timestring()}', "
            f"n_teachers_to_sample={self.n_teachers_to_sample}, combine='{self.combine}', "
            f"seed={self.seed})"
        )


def _loss_scale(state: State, like: Tensor) -> Tensor:
    """Return the factor by which Composer's gradient scaler multiplies the loss."""
    one = torch.ones_like(like)
    if state.precision == Precision.AMP_FP16 and state.scaler is not None:
        return state.scaler.scale(one)
    return one
