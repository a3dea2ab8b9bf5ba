"""Teachers that are made of the student itself: the running mean of its weights, or a snapshot."""

import copy
from numbers import Real
from typing import Any

import torch
from composer.core import State, Time, TimeUnit
from composer.utils import FSDPConfig, dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from composer_distill.schedule import Weight
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.sharding import Sharding, local, reshard
from composer_distill.teachers.teacher import Teacher


class EMATeacher(Teacher):
    """The running mean of the student's weights, as a teacher (mean teacher).

    It begins as a copy of the student at ``start_dur``. After the optimizer's step each weight
    moves to ``decay * mean + (1 - decay) * student``; buffers, such as the statistics of batch
    normalisation, are copied. It is the one teacher that a run changes, and by this rule alone.

    It costs memory for a second model, which is cut over the ranks where FSDP2 cuts the student:
    then each rank moves its own part. Its weights are kept in the Trainer's checkpoint with the
    algorithm's state, so that a resumed run ends where the uninterrupted one ends; they are never
    in the student's state dict. In half precision small steps are lost to rounding: train in
    single precision with autocast, as Composer's ``precision`` does.

    Args:
        decay: In [0, 1): how much of the mean stays at an update. :class:`Snapshot` has 1.
        update_every: How many batches lie between updates, as a Composer time in batches.
        warmup: Begins with a smaller decay, ``(1 + n) / (warmup + n)`` after n updates, until that
            reaches ``decay``; 0 for none.
        start_dur: First moment at which it answers; until then it does not exist. Where the window
            of ``Distillation`` opens later it is averaged meanwhile, and answers from there on.
        end_dur: First moment at which it no longer answers or changes.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined, or a schedule.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of its range. At INIT: if the student is to be cut by
            FSDP1, or has no weights yet.

    Reference:
        Tarvainen and Valpola 2017, arXiv 1703.01780.

    Example:
        >>> from composer_distill import Distillation, EMATeacher, KLDivergence
        >>> algorithm = Distillation(EMATeacher(decay=0.99), KLDivergence(1.0), 1.0, 1.0)
    """

    def __init__(
        self,
        *,
        decay: float = 0.999,
        update_every: str | Time = "1ba",
        warmup: int = 0,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        name: str = "EMA of the student",
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(
            nn.Module(),  # until it copies the student
            name=name,
            weight=weight,
            start_dur=start_dur,
            end_dur=end_dur,
        )
        self.decay = _checked_decay(decay)
        self.every = _checked_every(update_every)
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
            raise ValueError(f"warmup must be a number of updates, 0 or above, got {warmup!r}.")
        self.warmup = warmup

    def decay_after(self, updates: int) -> float:
        """Return the decay of the next update."""
        if self.warmup == 0:
            return self.decay
        return min(self.decay, (1 + updates) / (self.warmup + updates))

    def identity(self) -> str:
        """Return who it is: a rule, since its weights are the student's."""
        return f"{type(self).__name__}, decay {self.decay}, every {self.every} batches"

    former_identity = identity

    def __repr__(self) -> str:
        return f"{type(self).__name__}(decay={self.decay}, every {self.every} batches)"


class Snapshot(EMATeacher):
    """The student as it is at ``start_dur``, which teaches it from then on (born again).

    Args:
        start_dur: When it is taken, and first answers; where the window of ``Distillation`` opens
            later, then.
        end_dur: First moment at which it no longer answers.
        name: What logs and errors call it.
        weight: Its share when several teachers are combined, or a schedule.

    Reference:
        Yang et al. 2019, arXiv 1812.00123, goes on with the same student, as here; born-again
        networks, Furlanello et al. 2018, arXiv 1805.04770, train each generation anew.

    Example:
        >>> from composer_distill import Distillation, KLDivergence, Snapshot
        >>> algorithm = Distillation(Snapshot(start_dur=0.5), KLDivergence(4.0), 0.5, 0.5)
    """

    def __init__(
        self,
        *,
        start_dur: float | str | Time = 0.0,
        end_dur: float | str | Time = 1.0,
        name: str = "snapshot of the student",
        weight: Weight = 1.0,
    ) -> None:
        super().__init__(start_dur=start_dur, end_dur=end_dur, name=name, weight=weight)
        self.decay = 1.0


class MovingAverage(LiveTeacher):
    """A source of targets that follows the student.

    Args:
        teacher: The rule that it follows.
        label: What errors and logs call it in this run.
    """

    teacher: EMATeacher

    def __init__(self, teacher: EMATeacher, label: str) -> None:
        super().__init__(teacher, label)
        self._updates = 0
        self._begun: int | None = None  # the batch
        self._seen = -1

    def prepare(self, state: State, sharding: Sharding) -> None:
        """Copy the student, at INIT, when it is still whole; the copy is cut where it will be.

        Args:
            state: The Trainer's state.
            sharding: Without effect where the student is cut: each rank then averages its own part.

        Raises:
            ValueError: If the student is to be cut by FSDP1, or has no weights yet.
        """
        self._updates, self._begun, self._seen = 0, None, -1
        if isinstance(state.fsdp_config, FSDPConfig):
            raise ValueError(
                f"{self.label}: it follows a student that is whole or cut by FSDP2, and this one "
                "will be cut by FSDP1, which flattens weights. Use parallelism_config="
                "{'fsdp': FSDP2Config()}."
            )
        if any(tensor.is_meta for tensor in state.model.parameters()):
            raise ValueError(
                f"{self.label}: the student is on the meta device and can't be copied. Build it "
                "with its weights in host memory, on every rank."
            )
        self.teacher.model = copy.deepcopy(bare(state.model))
        super().prepare(state, sharding if state.fsdp_config is None else "sharded")

    @property
    def exists(self) -> bool:
        """Whether it has been made of the student yet."""
        return self._begun is not None

    def follow(self, state: State, *, acting: bool) -> None:
        """Begin with the student's weights, or move towards them.

        Args:
            state: The Trainer's state.
            acting: Whether distillation acts on the next batch; what never moves begins with that.
        """
        batch = int(state.timestamp.batch)
        if batch == self._seen or not self.window.contains(state):
            return
        if self._begun is None and self.teacher.decay == 1.0 and not acting:
            return
        self._seen = batch
        if self._begun is None:
            self._begun = batch
            self._move(state.model, 0.0)
        elif (batch - self._begun) % self.teacher.every == 0 and self.teacher.decay < 1.0:
            self._move(state.model, self.teacher.decay_after(self._updates))
            self._updates += 1

    @torch.no_grad()
    def _move(self, student: nn.Module, decay: float) -> None:
        reshard(student)  # an evaluation before the run leaves it gathered
        parameters = dict(self.teacher.model.named_parameters())
        theirs = _tensors(student)
        for name, tensor in _tensors(self.teacher.model).items():
            own, new = local(tensor), local(theirs[name])
            is_mean = own.is_floating_point() or own.is_complex()
            if name in parameters and is_mean and decay > 0.0:
                own.lerp_(new.to(own), 1.0 - decay)
            else:
                own.copy_(new)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return the mean, whole and in host memory, and how far it has come.

        Where it is cut every rank must ask, and the first one alone, which writes, gets the mean:
        Composer writes algorithms' states into sharded checkpoints as bytes of that rank.
        """
        weights: dict[str, Tensor] = {}
        if self._begun is not None:
            for name, tensor in _tensors(self.teacher.model).items():
                whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
                if not self.sharded or dist.get_global_rank() == 0:
                    weights[name] = whole.detach().to("cpu", copy=True)
        places = {"updates": self._updates, "begun": self._begun, "seen": self._seen}
        return {**places, "weights": weights}

    @torch.no_grad()
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where a run stopped, on as many ranks or on others."""
        self._updates, self._begun, self._seen = saved["updates"], saved["begun"], saved["seen"]
        own = _tensors(self.teacher.model)
        for name, weight in saved["weights"].items():
            tensor = own[name]
            if isinstance(tensor, DTensor):
                mesh, placements = tensor.device_mesh, tensor.placements
                weight = distribute_tensor(weight, mesh, placements, src_data_rank=None)
            local(tensor).copy_(local(weight))


def bare(model: Any) -> Any:
    """Return a model without the wrappers that Composer puts around it."""
    if isinstance(model, DistributedDataParallel):
        model = model.module
    return getattr(model, "_orig_mod", model)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name, without what recomputation puts into it."""
    model = bare(model)
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name.replace("_checkpoint_wrapped_module.", ""): tensor for name, tensor in named}


def _checked_decay(decay: Any) -> float:
    number = isinstance(decay, Real) and not isinstance(decay, bool)
    if not number or not 0.0 <= float(decay) < 1.0:
        raise ValueError(
            f"decay must be at least 0 and below 1, got {decay!r}. Use 0.999, or Snapshot for one "
            "that never moves."
        )
    return float(decay)


def _checked_every(every: Any) -> int:
    time = Time.from_timestring(every) if isinstance(every, str) else every
    if not isinstance(time, Time) or time.unit is not TimeUnit.BATCH or time.value < 1:
        raise ValueError(
            f"update_every must be a number of batches such as '1ba', at least one, got {every!r}."
        )
    return int(time.value)
