"""Teachers, and students, that change their input in place change nothing for anybody else."""

from dataclasses import dataclass

import pytest
import torch
from composer.algorithms import SAM, MixUp
from composer.core import Algorithm, DataSpec, Event
from integration.harness import (
    Classifier,
    Recorder,
    Spy,
    assert_same,
    dataset,
    entries_of,
    fit,
    loader,
    logged,
    mlp,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import Distillation, FeatureTerm, KLDivergence, Teacher
from composer_distill.losses import DecoupledKD, HiddenMSE

# Composer's own, at each SAM
pytestmark = pytest.mark.filterwarnings("ignore:SAM has known issues")


class Normalised(nn.Module):
    def __init__(self, *, in_place):
        super().__init__()
        self.net, self.in_place = mlp(1), in_place

    def forward(self, x):
        return self.net(x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25)


class Rectified(nn.Module):
    def __init__(self, *, in_place):
        super().__init__()
        self.net = nn.Sequential(nn.ReLU(inplace=in_place), *mlp(1))

    def forward(self, x):
        return self.net(x)


class Whole(nn.Module):
    """A student that keeps its input for the backward, as any first linear layer does."""

    def __init__(self):
        super().__init__()
        self.net = mlp(0)

    def forward(self, x):
        return self.net(x)


ALGORITHMS = {
    "two teachers": lambda teacher: [Distillation([teacher, mlp(2)], KLDivergence(2.0))],
    "behind SAM": lambda teacher: [
        SAM(rho=0.05, interval=1),
        Distillation(teacher, KLDivergence(2.0)),
    ],
    "in pieces": lambda teacher: [
        Distillation(Teacher(teacher, microbatch_size=3), KLDivergence(2.0))
    ],
}


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("kind", [Normalised, Rectified])
def test_the_run_is_bitwise_that_of_a_teacher_that_only_reads(name, kind):
    made = [
        fit(
            Classifier(Whole()),
            ALGORITHMS[name](kind(in_place=in_place)),
            train_dataloader=loader(),
            max_duration="2ep",
            device_train_microbatch_size=5,
        )
        for in_place in (True, False)
    ]
    assert_same(made[0].state.model, made[1].state.model)
    assert logged(made[0], "loss/train/kd") == logged(made[1], "loss/train/kd")


@pytest.mark.parametrize("reads", [True, False])
def test_only_a_teacher_that_writes_costs_copies(reads):
    seen, student_saw = [], []
    teacher, student = Normalised(in_place=not reads), Whole()
    teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].data_ptr()))
    student.register_forward_pre_hook(lambda m, inputs: student_saw.append(inputs[0].data_ptr()))
    fit(Classifier(student), Distillation(teacher, KLDivergence()), train_dataloader=loader(40))
    assert len(seen) == 4
    shared = [ours == theirs for ours, theirs in zip(student_saw, seen, strict=True)]
    assert shared == [False, *[reads] * 3]


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, student, teacher):
        return (self.project(student) - teacher).square().mean()


def test_weights_of_the_loss_that_nothing_trains_are_told_of_once(caplog):
    said = "kd_loss_fn (Projected) has 2 weights that no optimizer trains (project.weight, "
    fit(Classifier(mlp(0)), Distillation(mlp(1), Projected()), train_dataloader=loader())
    assert caplog.text.count(said) == 1
    assert "add its parameters to the optimizer" in caplog.text


@pytest.mark.parametrize("how", ["in the optimizer", "frozen"])
def test_weights_of_the_loss_that_are_trained_or_frozen_are_in_order(caplog, how):
    student, loss = Classifier(mlp(0)), Projected()
    trained = [*student.parameters()]
    if how == "frozen":
        loss.requires_grad_(False)
    else:
        trained += loss.parameters()
    before = loss.project.weight.clone()
    optimizer = torch.optim.SGD(trained, lr=0.1)
    fit(student, Distillation(mlp(1), loss), train_dataloader=loader(), optimizers=optimizer)
    assert "that no optimizer trains" not in caplog.text
    assert torch.equal(before, loss.project.weight) == (how == "frozen")


def student_that(*, writes):
    student = Normalised(in_place=writes)
    student.net = mlp(0, dropout=0.2)
    return Classifier(student)


TAUGHT = {
    "one teacher": lambda: Distillation(Normalised(in_place=False), KLDivergence(2.0)),
    "one that writes": lambda: Distillation(Normalised(in_place=True), KLDivergence(2.0)),
    "two": lambda: Distillation([mlp(1), Normalised(in_place=False)], KLDivergence(2.0)),
    "layers": lambda: Distillation(
        Normalised(in_place=False),
        None,
        feature_terms=[FeatureTerm(student="net.0", teacher="net.0", loss=HiddenMSE())],
    ),
    "evaluated": lambda: Distillation(mlp(1), KLDivergence(2.0), eval_teachers=True),
    "from the third batch on": lambda: Distillation(mlp(1), KLDivergence(2.0), start_dur="2ba"),
    "behind MixUp": lambda: [MixUp(alpha=0.5), Distillation(mlp(1), KLDivergence(2.0))],
    "before MixUp": lambda: [Distillation(mlp(1), KLDivergence(2.0)), MixUp(alpha=0.5)],
    "behind SAM": lambda: [SAM(rho=0.05, interval=10), Distillation(mlp(1), KLDivergence(2.0))],
    "two instances": lambda: [
        Distillation(mlp(1), KLDivergence(2.0)),
        Distillation(mlp(2), KLDivergence(1.0)),
    ],
}


@pytest.mark.parametrize("name", TAUGHT)
def test_teachers_read_what_a_student_was_given_that_writes_into_it(name, caplog):
    def train(writes):
        return fit(
            student_that(writes=writes),
            TAUGHT[name](),
            train_dataloader=loader(30),
            eval_dataloader=loader(20, seed=5) if name == "evaluated" else None,
            max_duration="2ep",
            device_train_microbatch_size=5,
        )

    reading, told = train(False), len(caplog.records)
    writing = train(True)
    assert_same(writing.state.model, reading.state.model)
    assert without_time(entries_of(writing)) == without_time(entries_of(reading))
    said = [record.getMessage() for record in caplog.records[told:]]
    found = [words for words in said if words.startswith("the student changes its input in place")]
    instances = 2 if name == "two instances" else 1
    assert len(found) == instances * (2 if name == "evaluated" else 1)


def without_time(values):
    return {name: value for name, value in values.items() if "time" not in name}


def test_a_student_that_reads_is_copied_from_four_times():
    term = Distillation(mlp(1), KLDivergence())
    copies = Spy(Event.AFTER_FORWARD, lambda _: [x for *_, x in term._events._given._noted[1]])
    hooks = Spy(Event.AFTER_FORWARD, lambda state: len(state.model._forward_pre_hooks))
    student = student_that(writes=False)
    fit(student, term, train_dataloader=loader(60), callbacks=[copies, hooks])
    assert [[x is not None for x in seen] for seen in copies.seen] == [[True] * 2] * 4 + [
        [False] * 2
    ] * 2
    assert hooks.seen == [0] * 6


class Changing(Classifier):
    """A student of a dict that changes what others read in one of many ways, or does the same."""

    def __init__(self, way, *, changes, begins=0):
        super().__init__(mlp(0))
        self.way, self.changes, self.begins, self.calls = way, changes, begins, 0
        self.kept = None

    def forward(self, batch):
        self.calls += 1
        if not self.changes or self.calls <= self.begins:
            return {"logits": self.module((batch["x"] - 0.5) / 0.25)}
        if self.way == "puts another into its batch":
            batch["x"] = (batch["x"] - 0.5) / 0.25
            return {"logits": self.module(batch["x"])}
        if self.way == "takes labels out":
            self.kept = batch.pop("labels")
        if self.way == "writes":
            batch["x"].sub_(0.5).div_(0.25)
            return {"logits": self.module(batch["x"])}
        if self.way == "writes past versions":
            batch["x"].data.sub_(0.5).div_(0.25)
            return {"logits": self.module(batch["x"])}
        return {"logits": self.module((batch["x"] - 0.5) / 0.25)}

    def loss(self, outputs, batch):
        labels = batch.get("labels", self.kept)
        loss = F.cross_entropy(outputs["logits"] / 2, labels)
        if self.changes and self.way == "puts another into its answer":
            outputs["logits"] = outputs["logits"] / 2
        if self.changes and self.way == "writes in its loss":
            batch["x"] += 1.0
            batch["labels"] = batch["labels"].clone().zero_()
        return loss


class OfDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(1)

    def forward(self, x):
        return self.net(x.clone())


class RecorderOfDict(Recorder):
    def forward(self, x):
        return super().forward(x)


def rows(n=40):
    return DataLoader([{"x": x, "labels": y} for x, y in dataset(n)], batch_size=10)


WAYS = (
    "puts another into its batch",
    "takes labels out",
    "writes",
    "writes past versions",
    "puts another into its answer",
    "writes in its loss",
)


@pytest.mark.parametrize("way", WAYS)
def test_what_a_student_or_its_loss_does_to_its_batch_and_answer_is_its_own(way):
    runs = [
        fit(
            Changing(way, changes=changes),
            Distillation(OfDict(), DecoupledKD()),  # which reads labels
            train_dataloader=rows(),
            max_duration="2ep",
            device_train_microbatch_size=5,
        )
        for changes in (True, False)
    ]
    assert_same(runs[0].state.model, runs[1].state.model)
    assert logged(runs[0], "loss/train/kd") == logged(runs[1], "loss/train/kd") != []


@dataclass(frozen=True)
class Sample:
    x: torch.Tensor
    labels: torch.Tensor


class OfSamples(Classifier):
    def __init__(self, *, writes):
        super().__init__(mlp(0))
        self.writes = writes

    def forward(self, batch):
        return self.module(batch.x.sub_(0.5) if self.writes else batch.x - 0.5)

    def loss(self, outputs, batch):
        return F.cross_entropy(outputs, batch.labels)


class OfSample(OfDict):
    def forward(self, batch):
        return self.net(batch.x.clone())


def test_what_a_student_writes_into_a_dataclass_is_its_own():
    def train(writes):
        collate = lambda rows: Sample(*map(torch.stack, zip(*rows, strict=True)))  # noqa: E731
        data = DataSpec(
            DataLoader(dataset(40), batch_size=10, collate_fn=collate),
            get_num_samples_in_batch=lambda batch: len(batch.x),
            split_batch=lambda batch, size: [batch],
        )
        term = Distillation(OfSample(), KLDivergence(2.0))
        return fit(OfSamples(writes=writes), term, train_dataloader=data)

    assert_same(train(True).state.model, train(False).state.model)


def test_a_dropout_that_student_and_teacher_share_stays_in_the_students_mode():
    def train(shares):
        student, teacher = mlp(0, dropout=0.5), mlp(1, dropout=0.5)
        teacher[2] = student[2] if shares else teacher[2]
        return fit(
            Classifier(student),
            Distillation(teacher, KLDivergence(2.0), eval_teachers=True),
            train_dataloader=loader(40),
            eval_dataloader=loader(20),
            eval_interval="1ba",
            device_train_microbatch_size=5,
        )

    shared, apart = train(True), train(False)
    assert_same(shared.state.model, apart.state.model)
    assert without_time(entries_of(shared)) == without_time(entries_of(apart))


def test_a_student_that_begins_to_write_late_is_told_of_and_copied_from_then_on(caplog):
    seen = []
    for changes in (True, False):
        teacher = RecorderOfDict(mlp(1))
        student = Changing("writes", changes=changes, begins=6)
        fit(student, Distillation(teacher, KLDivergence()), train_dataloader=rows(100))
        seen.append(teacher.inputs)
    same = [torch.equal(ours, theirs) for ours, theirs in zip(*seen, strict=True)]
    assert same == [True] * 6 + [False] + [True] * 3
    assert caplog.text.count("its teachers read one microbatch as it left it") == 1


class Tempered(Classifier):
    def loss(self, outputs, batch):
        return F.cross_entropy(outputs.div_(3.0), batch[1])


def test_a_loss_that_writes_into_the_logits_is_refused():
    student = Tempered(mlp(0))
    with pytest.raises(
        ValueError, match=r"the student: its answer was changed in place .*\(10, 4\)"
    ):
        fit(student, Distillation(mlp(1), KLDivergence()))
    assert_same(student, Tempered(mlp(0)))


def test_a_compiled_student_is_not_compiled_again():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    student = student_that(writes=False)
    term = Distillation(mlp(1), KLDivergence())
    fit(student, term, train_dataloader=loader(60), compile_config={"backend": backend})
    assert len(compiled) == 1


class Asks(Algorithm):
    """Calls the student with a batch of its own, just before it is called with the Trainer's."""

    def match(self, event, state):
        return event == Event.BEFORE_FORWARD

    def apply(self, event, state, logger):
        inputs, targets = state.batch
        with torch.no_grad():
            state.model((inputs + 1.0, targets))


def test_a_student_that_is_called_with_another_batch_too():
    teacher, student = Recorder(mlp(1)), Recorder(mlp(0))
    fit(Classifier(student), [Distillation(teacher, KLDivergence()), Asks()])
    seen = student.inputs[1::2]  # each time the second, which is the Trainer's
    assert len(seen) == len(teacher.inputs) == 2
    assert all(ours.equal(theirs) for ours, theirs in zip(seen, teacher.inputs, strict=True))
