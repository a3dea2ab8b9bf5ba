"""The first teacher beside the student: on a GPU in any order that streams allow, to the same bits.

The streams are those of ``streams.py``, on a CPU. What a GPU itself does: ``tests/gpu``.
"""

import copy
import functools
from contextlib import contextmanager

import pytest
import torch
from composer.algorithms import LabelSmoothing, MixUp
from composer.core import Algorithm, Event
from integration import language
from integration.harness import (
    Classifier,
    assert_close,
    assert_same,
    batch_norm_mlp,
    entries_of,
    fit,
    forward_kl,
    loader,
    mlp,
    train_by_hand,
    trainer_for,
)
from integration.streams import Event as Moment
from integration.streams import modelled
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, EMATeacher, FeatureTerm, KLDivergence, Teacher
from composer_distill.losses import FusedLinearKL, HiddenMSE, NormalizedKD
from composer_distill.teachers.adapters import AdapterFree
from composer_distill.teachers.found import CachedAnswers
from composer_distill.teachers.lane import Lane
from composer_distill.teachers.live import LiveTeacher
from composer_distill.teachers.stopwatch import Stopwatch
from composer_distill.terms.judging import teacher_confident
from composer_distill.terms.positions import attended_positions, loss_positions
from composer_distill.terms.student import StudentReader


@pytest.fixture
def machine():
    with modelled() as found:
        yield found


def images(**options):
    return {"student": functools.partial(Classifier, mlp(0, dropout=0.2)), **options}


def texts(kind="causal", **options):
    return {
        "student": functools.partial(language.model, kind, 0),
        "data": functools.partial(language.loader, language.batches(kind)),
        **options,
    }


def hidden(name):
    return FeatureTerm(student=name, teacher=name, loss=HiddenMSE())


def second_answers(batch, outputs):
    """Positions that only the student's own answers tell."""
    return outputs["logits"].argmax(-1) % 2 == 0


def distil(teachers, loss=None, **options):
    """What makes the algorithm, given whether teachers overlap."""
    loss = KLDivergence(2.0) if loss is None else loss

    def make(overlap):
        return Distillation(copy.deepcopy(teachers()), loss, overlap=overlap, **options)

    return make


def two_instances(overlap):
    teacher = mlp(1)
    losses = KLDivergence(2.0), KLDivergence(1.0)
    return [Distillation(teacher, loss, overlap=overlap) for loss in losses]


def one_of_two(overlap, *, asked_first):
    """Two instances of one teacher, of which one overlaps; Composer asks the last one first."""
    teacher = Lazy()
    beside = Distillation(teacher, KLDivergence(2.0), overlap=overlap)
    behind = Distillation(teacher, KLDivergence(1.0))
    return [behind, beside] if asked_first else [beside, behind]


def mixed(overlap, *, first, **options):
    algorithms = [MixUp(alpha=0.5, **options), distil(lambda: mlp(1))(overlap)]
    return algorithms if first else algorithms[::-1]


class Masks(Algorithm):
    """Leaves out labels after the batch was marked, in place or in another tensor."""

    def __init__(self, fill):
        self.fill = fill

    def match(self, event, state):
        return event is Event.BEFORE_FORWARD

    def apply(self, event, state, logger):
        labels = state.batch["labels"]
        state.batch["labels"] = self.fill(labels, labels % 2 == 0, -100)


def masked_after(fill):
    return lambda overlap: [distil(text_teacher)(overlap), Masks(fill)]


class InPlace(nn.Module):
    """A teacher that writes into its input."""

    def __init__(self):
        super().__init__()
        self.module = mlp(1)

    def forward(self, inputs):
        return self.module(inputs.mul_(2.0))


class Lazy(nn.Module):
    """A teacher that makes a table at its first forward and keeps it."""

    def __init__(self):
        super().__init__()
        self.module, self.table = mlp(1), None

    def forward(self, inputs):
        if self.table is None:
            self.table = torch.arange(4.0, dtype=inputs.dtype).sin()
        return self.module(inputs) + self.table


class Keeps(nn.Module):
    """A loss that keeps the last target, to compare with it too."""

    def __init__(self):
        super().__init__()
        self.last = None

    def forward(self, student, teacher):
        targets = [x for x in (teacher, self.last) if x is not None and x.shape == student.shape]
        self.last = teacher
        return sum((student - target).square().mean() for target in targets)


class Scales:
    """A view of the batch that is made anew of the last one."""

    def __init__(self):
        self.factor = None

    def __call__(self, batch):
        self.factor = batch[0].mean().cos() if self.factor is None else self.factor * 0.9
        return batch[0] * self.factor


# as in Transformer Engine, whose layers share a workspace
EngineLinear = type("Linear", (nn.Linear,), {"__module__": "transformer_engine.pytorch"})


def engine(seed):
    model = mlp(seed)
    model[-1].__class__ = EngineLinear
    return model


def text_teacher():
    return language.model("causal", 1)


# Each with what it is, and whether any of it can compute beside the student
WORK = {
    "one teacher": (images(make=distil(lambda: mlp(1))), True),
    "batch norm": (images(make=distil(lambda: batch_norm_mlp(1))), True),
    "two of three": (
        images(make=distil(lambda: [mlp(1), mlp(2), mlp(3)], n_teachers_to_sample=2)),
        True,
    ),
    "three": (images(make=distil(lambda: [mlp(1), mlp(2), mlp(3)])), True),
    "mixed probabilities": (
        images(make=distil(lambda: [mlp(1), mlp(2)], combine="probabilities")),
        True,
    ),
    "skipping": (images(make=distil(lambda: mlp(1), on_nonfinite="skip")), True),
    "judged": (images(make=distil(lambda: mlp(1), mask_fn=teacher_confident(0.5))), True),
    "labels": (images(make=distil(lambda: mlp(1), NormalizedKD(1.5, 2.0))), True),
    "two instances": (images(make=two_instances), True),
    "the instance asked first": (
        images(make=functools.partial(one_of_two, asked_first=True)),
        True,
    ),
    "the instance asked second": (
        images(make=functools.partial(one_of_two, asked_first=False)),
        False,
    ),
    "windows": (
        images(make=distil(lambda: [Teacher(mlp(1), end_dur=0.5), Teacher(mlp(2), start_dur=0.5)])),
        True,
    ),
    "a loss that keeps": (
        images(make=lambda overlap: Distillation(mlp(1), Keeps(), overlap=overlap)),
        True,
    ),
    "a view that is kept": (images(make=distil(lambda: Teacher(mlp(1), input_fn=Scales()))), True),
    "labels smoothed": (
        images(make=lambda overlap: [
            LabelSmoothing(0.1), Distillation(mlp(1), NormalizedKD(1.5, 2.0), overlap=overlap)
        ]),
        True,
    ),
    "one workspace": (
        {
            "student": functools.partial(Classifier, engine(0)),
            "make": distil(lambda: engine(1)),
        },
        False,
    ),
    "the teacher's own workspace": (images(make=distil(lambda: engine(1))), True),
    "fewer classes": (images(make=distil(lambda: mlp(1), vocab_size=3)), True),
    "in place": (images(make=distil(InPlace)), True),
    "a student in place": (
        {"student": functools.partial(Classifier, InPlace()), "make": distil(lambda: mlp(2))},
        False,
    ),
    "lazy": (images(make=distil(lambda: [Lazy(), mlp(2)])), True),
    "in pieces": (images(make=distil(lambda: Teacher(mlp(1), microbatch_size=2))), True),
    "own view": (images(make=distil(lambda: Teacher(mlp(1), input_fn=lambda x: x))), True),
    "features": (images(make=distil(lambda: mlp(1), feature_terms=[hidden("0")])), True),
    "features alone": (
        images(make=lambda overlap: Distillation(
            mlp(1), None, feature_terms=[hidden("0"), hidden("2")], overlap=overlap
        )),
        True,
    ),
    "moving average": (images(make=distil(lambda: EMATeacher(decay=0.9))), True),
    "evaluated": (images(make=distil(lambda: mlp(1), eval_teachers=True), evaluates=True), True),
    "mixed before": (images(make=functools.partial(mixed, first=True)), True),
    "mixed after": (images(make=functools.partial(mixed, first=False)), False),
    "mixed loss": (images(make=functools.partial(mixed, first=False, interpolate_loss=True)), True),
    "routed": (
        images(make=distil(lambda: [
            Teacher(mlp(1), route=lambda batch: batch[1] < 2),
            Teacher(mlp(2), route=lambda batch: batch[1] >= 2),
        ])),
        False,
    ),
    "text": (texts(make=distil(text_teacher)), True),
    "text, fused": (texts(make=distil(text_teacher, FusedLinearKL())), True),
    "text, labels": (texts(make=distil(text_teacher, NormalizedKD(1.5, 1.0))), True),
    "text, judged": (texts(make=distil(text_teacher, mask_fn=teacher_confident(0.1))), True),
    "text, own positions": (texts(make=distil(text_teacher, mask_fn=second_answers)), False),
    "text, with a loss": (texts(make=distil(text_teacher, mask_fn=loss_positions)), True),
    "text, attended": (texts(make=distil(text_teacher, mask_fn=attended_positions)), True),
    "text, exchanged": (texts(make=masked_after(torch.Tensor.masked_fill)), False),
    "text, written into": (texts(make=masked_after(torch.Tensor.masked_fill_)), False),
    "text, features": (
        texts(make=distil(text_teacher, feature_terms=[hidden("model.transformer.h.0")])),
        True,
    ),
    "masked text": (
        texts("masked", make=distil(lambda: language.model("masked", 1))),
        True,
    ),
    "encoder and decoder": (
        texts("encoder_decoder", make=distil(lambda: language.model("encoder_decoder", 1))),
        True,
    ),
}  # fmt: skip


def train(work, overlap, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        student = copy.deepcopy(work["student"]())
    data = work["data"]() if "data" in work else loader()
    return fit(
        student,
        work["make"](overlap),
        train_dataloader=data,
        eval_dataloader=loader(20, seed=9) if work.get("evaluates") else None,
        max_duration="2ep",
        device_train_microbatch_size=5 if "data" not in work else 4,
        **options,
    )


def values(trainer):
    return {name: x for name, x in entries_of(trainer).items() if "time" not in name}


@pytest.mark.parametrize("name", WORK)
def test_whatever_order_the_streams_allow_the_result_is_the_same(machine, name):
    work, overlaps = WORK[name]
    with machine:
        beside = train(work, overlap=True)
    assert machine.faults == []
    assert bool(machine.apart) is bool(machine.products) is overlaps
    assert all(unwaited > 0 for unwaited in machine.apart)
    machine.lane = Lane(torch.device("cpu"))
    behind = train(work, overlap=False)
    assert_same(beside.state.model, behind.state.model)
    assert values(beside) == values(behind)


def test_a_loop_by_hand(machine):
    teacher = mlp(1)

    def objective(student, batch):
        distance = forward_kl(2.0)(student(batch[0]), teacher(batch[0]).detach())
        return 0.1 * F.cross_entropy(student(batch[0]), batch[1]) + 0.9 * distance

    with machine:
        trained = fit(Classifier(mlp(0)), distil(lambda: teacher)(True))
    assert machine.apart
    assert_close(trained.state.model.module, train_by_hand(mlp(0), loader(), objective))


def test_a_run_that_goes_on_ends_where_the_straight_one_ends(machine, tmp_path):
    work = WORK["one teacher"][0]
    saves = {"save_folder": str(tmp_path), "save_interval": "1ba", "save_filename": "ba{batch}.pt"}
    with machine:
        whole = train(work, overlap=True, **saves)
        again = train(work, overlap=True, load_path=str(tmp_path / "ba3.pt"))
    assert machine.faults == []
    assert_same(again.state.model, whole.state.model)


def test_the_student_waits_for_a_teacher_that_fails(machine):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.calls = mlp(1), 0

        def forward(self, inputs):
            self.calls += 1
            logits = self.module(inputs)
            if self.calls == 2:
                raise ValueError("no")
            return logits

    with machine, pytest.raises(ValueError, match="no"):
        train(images(make=distil(Fails)), overlap=True)
    assert machine.now is machine.main
    assert machine.lane._mark is None
    assert (
        machine.main.done[machine.lane._stream] == machine.lane._stream.done[machine.lane._stream]
    )


def test_what_shares_with_the_student_stays_behind_it(machine, monkeypatch):
    monkeypatch.setattr(LiveTeacher, "stands_apart", False)
    with machine:
        train(WORK["one teacher"][0], overlap=True)
    assert machine.faults == machine.apart == []


def test_who_stands_apart():
    live = LiveTeacher(Teacher(mlp(1)), "teacher 0")
    assert live.stands_apart
    live.sharded = True
    assert not live.stands_apart
    for kind in (AdapterFree, CachedAnswers):  # the one is the student, the other reads files
        assert not hasattr(kind, "stands_apart")


def test_the_time_is_that_of_the_students_stream(machine, monkeypatch):
    seen = []
    monkeypatch.setattr(Stopwatch, "start", lambda self: seen.append(machine.now))
    monkeypatch.setattr(Stopwatch, "stop", lambda self, start: seen.append(machine.now))
    with machine:
        train(WORK["one teacher"][0], overlap=True)
    assert seen
    assert machine.apart
    assert set(seen) == {machine.main}


def test_nothing_of_a_batch_is_kept(machine):
    term = Distillation(
        mlp(1), KLDivergence(2.0), lambda state: float(int(state.timestamp.batch) < 2), overlap=True
    )
    trainer = trainer_for(Classifier(mlp(0)), term, max_duration="2ep")
    with machine:
        trainer.fit()
    assert len(machine.apart) > 0
    assert machine.lane._mark is None
    trainer.close()


class Holder:
    def __init__(self):
        self.tensor = torch.zeros(2)


def in_inference_mode():
    with torch.inference_mode():
        return torch.zeros(2)


@pytest.mark.parametrize(
    ("part", "stands"),
    [
        (torch.zeros(2), True),
        ("name", True),
        (b"name", True),
        (3, True),
        (None, True),
        (Holder(), False),
    ],
)
def test_a_batch_stands_where_all_that_it_holds_can_be_seen(machine, part, stands):
    batch = {"x": torch.zeros(2), "more": [part, (part,)]}
    machine.lane.mark(batch)
    assert machine.lane.stands(batch) is stands
    assert not machine.lane.stands({**batch, "x": torch.zeros(2)})


def test_a_mark_is_of_one_batch_and_all_are_of_one_stream(machine):
    batch = torch.zeros(2)
    machine.lane.mark(batch)
    stream = machine.lane._stream
    machine.lane.mark([batch, Holder()])
    assert machine.lane._mark is None
    assert machine.lane._stream is stream


def test_a_tensor_of_inference_mode_tells_no_changes(machine):
    batch = in_inference_mode()
    machine.lane.mark(batch)
    assert not machine.lane.stands(batch)


def test_no_stream_is_made_where_nobody_asks_for_one(machine):
    with machine:
        train(WORK["text, features"][0], overlap=False)
    assert machine.lane._stream is None


def test_nothing_happens_on_a_cpu():
    algorithm = Distillation(mlp(1), KLDivergence(2.0), overlap=True)
    fit(Classifier(mlp(0)), algorithm)
    lane = algorithm._events._panel.lane
    with lane.aside(True):
        lane.mark(torch.zeros(2))
        assert not lane.stands(torch.zeros(2))
    assert copy.deepcopy(algorithm)._events._panel.lane is lane


class NoEnd(Lane):
    """The student's stream does not wait for the lane."""

    @contextmanager
    def aside(self, free):
        if not free or self._mark is None:
            yield
            return
        self._stream.wait_event(self._mark[1])
        with torch.cuda.stream(self._stream):
            yield


class NoMark(Lane):
    """The lane does not wait for the batch."""

    def mark(self, batch):
        super().mark(batch)
        if self._mark is not None:
            self._mark = self._mark[0], Moment({})


class AnyBatch(Lane):
    """The batch is not looked at."""

    def stands(self, batch):
        return self._mark is not None


class NeverForgets(Lane):
    """Each question goes to the lane, not the first alone."""

    def forget(self):
        pass


BROKEN = [
    (NoEnd, "one teacher"),
    (NoMark, "one teacher"),
    (AnyBatch, "mixed after"),
    (NeverForgets, "three"),
    (NeverForgets, "two instances"),
]


@pytest.mark.parametrize(("kind", "name"), BROKEN)
def test_the_model_of_streams_sees_a_lane_that_is_wrong(machine, kind, name):
    machine.lane = kind(torch.device("cuda"))
    with machine:
        train(WORK[name][0], overlap=True)
    assert machine.faults


def test_the_model_of_streams_sees_a_mask_that_waits_for_the_student(machine, monkeypatch):
    monkeypatch.setattr(StudentReader, "reads_batch_alone", True)
    with machine:
        train(WORK["text, own positions"][0], overlap=True)
    assert machine.faults
