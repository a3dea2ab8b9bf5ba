"""Each sample answered by its own teachers, in real Trainers and against a loop by hand."""

import pytest
import torch
from integration.harness import (
    N_CLASSES,
    N_FEATURES,
    Classifier,
    Recorder,
    assert_close,
    assert_same,
    entries_of,
    fit,
    forward_kl,
    logged,
    mlp,
    train_by_hand,
    trainer_for,
)
from torch.nn import functional as F
from torch.utils.data import DataLoader

from composer_distill import (
    CachedTeacher,
    Distillation,
    FeatureTerm,
    KLDivergence,
    Teacher,
    cache_teacher,
    teacher_confident,
)
from composer_distill.losses import FusedLinearKL, HiddenMSE

NAMES = ["math", "code", "", "math", "math", "code", "", "math", "", "math"]


class Reader(Recorder):
    """A Recorder that is found by the name of its argument."""

    def forward(self, input):
        return super().forward(input)


class Named(Classifier):
    """A ComposerModel whose batches are mappings."""

    def forward(self, batch):
        return self.module(batch["input"])

    def loss(self, outputs, batch):
        return self.loss_fn(outputs, batch["labels"])


def samples(n=20, shape=()):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(n, *shape, N_FEATURES, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, N_CLASSES, (n, *shape), generator=generator)
    return [
        {"input": inputs[i], "labels": labels[i], "teacher": NAMES[i % 10], "number": i}
        for i in range(n)
    ]


def loader(n=20, batch_size=10, shape=()):
    return DataLoader(samples(n, shape), batch_size=batch_size)


def low(batch):
    return batch["input"][:, 0] < 0.2


def high(batch):
    return batch["input"][:, 0] > -0.2


def kl_of_rows(student, target):
    return (target * (target.log() - student.log_softmax(-1))).sum(-1)


def objective(routed, combine):
    """Return the loss by hand: ``routed`` holds ``(weight, module, route)`` of each teacher."""

    def loss(module, batch):
        logits = module(batch["input"])
        rows = torch.stack([w * route(batch).double() for w, _, route in routed])
        shares = rows / rows.sum(0).clamp(min=1e-300)
        answers = torch.stack([teacher(batch["input"]) for _, teacher, _ in routed]).detach()
        if combine == "logits":
            target = (shares[..., None] * answers).sum(0).softmax(-1)
        else:
            target = (shares[..., None] * answers.softmax(-1)).sum(0)
        has = rows.sum(0) > 0
        kl = torch.where(has, kl_of_rows(logits, target.clamp(min=1e-300)), 0.0)
        return 0.5 * F.cross_entropy(logits, batch["labels"]) + 0.5 * kl.mean()

    return loss


@pytest.mark.parametrize("microbatch_size", [10, 2, 1])
@pytest.mark.parametrize("combine", ["logits", "probabilities"])
def test_routed_teachers_train_as_a_loop_by_hand(combine, microbatch_size):
    teachers = [Reader(mlp(1)), Reader(mlp(2))]
    trained = fit(
        Named(mlp(0)),
        Distillation(
            [Teacher(teachers[0], weight=3.0, route=low), Teacher(teachers[1], route=high)],
            KLDivergence(1.0),
            0.5,
            0.5,
            combine=combine,
        ),
        train_dataloader=loader(),
        device_train_microbatch_size=microbatch_size,
    )
    routed = [(3.0, mlp(1), low), (1.0, mlp(2), high)]
    assert_close(
        trained.state.model.module, train_by_hand(mlp(0), loader(), objective(routed, combine))
    )
    for teacher, route in zip(teachers, (low, high), strict=True):
        read = torch.cat(teacher.inputs)
        expected = torch.cat([batch["input"][route(batch)] for batch in loader()])
        assert torch.equal(read, expected)


@pytest.mark.parametrize("microbatch_size", [10, 1])
def test_values_are_of_the_samples_that_they_tell_of(microbatch_size):
    teachers = [Teacher(mlp(1), name="math"), Teacher(mlp(2), name="code")]
    trained = fit(
        Named(mlp(0)),
        Distillation(teachers, KLDivergence(1.0), 0.5, 0.5, route_by="teacher"),
        train_dataloader=loader(10),
        device_train_microbatch_size=microbatch_size,
    )
    (batch,) = loader(10)
    logits = mlp(0)(batch["input"])
    answers, kls = {}, {}
    for name, seed in (("math", 1), ("code", 2)):
        rows = torch.tensor([one == name for one in NAMES])
        answers[name] = mlp(seed)(batch["input"][rows])
        kls[name] = kl_of_rows(logits[rows], answers[name].softmax(-1))
        agree = logits[rows].argmax(-1) == answers[name].argmax(-1)
        answers[name] = agree.double()
    both = torch.cat(list(kls.values()))
    told = {name: values[0][1] for name, values in entries_of(trained).items()}
    assert told["distillation/kd_loss/teacher_0"] == pytest.approx(kls["math"].mean().item())
    assert told["distillation/kd_loss/teacher_1"] == pytest.approx(kls["code"].mean().item())
    assert told["distillation/kl"] == pytest.approx(both.mean().item())
    assert told["loss/train/kd"] == pytest.approx(both.sum().item() / 10)
    agreement = torch.cat(list(answers.values())).mean().item()
    assert told["distillation/agreement"] == pytest.approx(agreement)
    assert not any("part of" in name for name in told)


def test_a_teacher_without_samples_in_a_batch_has_no_value_there_and_is_not_asked():
    idle = Reader(mlp(2))
    teachers = [mlp(1), Teacher(idle, route=lambda batch: batch["number"] >= 10)]
    trained = fit(
        Named(mlp(0)),
        Distillation(teachers, forward_kl(), 0.5, 0.5),
        train_dataloader=loader(20, 10),
        device_train_microbatch_size=5,
    )
    assert [step for step, _ in entries_of(trained)["distillation/kd_loss/teacher_1"]] == [1]
    assert len(idle.inputs) == 2


@pytest.mark.parametrize("telemetry", [True, False])
def test_samples_without_a_teacher_train_on_their_own_loss(telemetry):
    nobody = Teacher(Reader(mlp(1)), route=lambda batch: batch["number"] < 0)
    trained = fit(
        Named(mlp(0)),
        Distillation(nobody, KLDivergence(2.0), 0.5, 0.5, telemetry=telemetry),
        train_dataloader=loader(),
        device_train_microbatch_size=5,
    )

    def half(module, batch):
        return 0.5 * F.cross_entropy(module(batch["input"]), batch["labels"])

    assert_close(trained.state.model.module, train_by_hand(mlp(0), loader(), half))
    assert logged(trained, "loss/train/kd") == [0.0, 0.0]
    assert nobody.model.inputs == []


def test_a_route_for_all_samples_changes_no_bit():
    def train(teachers, **kwargs):
        term = Distillation(teachers, KLDivergence(2.0), 0.5, 0.5, **kwargs)
        return fit(Named(mlp(0)), term, train_dataloader=loader()).state.model

    everyone = Teacher(mlp(1), route=lambda batch: torch.ones(len(batch["input"])).bool())
    assert_same(train(everyone), train(mlp(1)))


def test_names_of_a_column_are_as_functions_of_it():
    def train(teachers, **kwargs):
        term = Distillation(teachers, KLDivergence(2.0), 0.5, 0.5, **kwargs)
        return fit(Named(mlp(0)), term, train_dataloader=loader(), device_train_microbatch_size=2)

    def named(name):
        return lambda batch: torch.tensor([one == name for one in batch["teacher"]])

    names = ("math", "code", "math")
    by_column = train([Teacher(mlp(i), name=n) for i, n in enumerate(names, 1)], route_by="teacher")
    by_route = train([Teacher(mlp(i), route=named(n)) for i, n in enumerate(names, 1)])
    assert_same(by_column.state.model, by_route.state.model)


def test_a_teacher_whose_window_is_closed_leaves_its_samples_to_the_others():
    teachers = [
        Teacher(mlp(1), route=low, end_dur="1ba", weight=3.0),
        Teacher(mlp(2), route=high, weight=lambda state: 1.0),
    ]
    trained = fit(
        Named(mlp(0)),
        Distillation(teachers, KLDivergence(1.0), 0.5, 0.5, combine="probabilities"),
        train_dataloader=loader(),
    )
    module, batches = mlp(0), list(loader())
    routed = [(3.0, mlp(1), low), (1.0, mlp(2), high)]
    module = train_by_hand(module, batches[:1], objective(routed, "probabilities"))
    module = train_by_hand(module, batches[1:], objective(routed[1:], "probabilities"))
    assert_close(trained.state.model.module, module)


def of_tokens(logits, labels):
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


@pytest.mark.parametrize("microbatch_size", [10, 2, 1])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("dim", [-1, 1])
def test_positions_that_count_and_classes_that_are_not_last(dim, masked, microbatch_size):
    """Each sample has three positions; of the even samples the first counts, else the last."""

    def mask_of(batch):
        even = (batch["number"] % 2 == 0)[:, None]
        return torch.where(even, torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1])).bool()

    def moved(seed):
        return torch.nn.Sequential(mlp(seed), Moved()) if dim == 1 else mlp(seed)

    def route(batch):
        return batch["input"][:, 0, 0] > 0

    term = Distillation(
        [Teacher(moved(1), route=route)],
        KLDivergence(1.0, dim=dim),
        0.5,
        0.5,
        mask_fn=(lambda batch, outputs: mask_of(batch)) if masked else None,
    )
    classes_last = of_tokens if dim == -1 else lambda x, y: of_tokens(x.movedim(1, -1), y)
    trained = fit(
        Named(moved(0), classes_last),
        term,
        train_dataloader=loader(shape=(3,)),
        device_train_microbatch_size=microbatch_size,
    )

    def by_hand(module, batch):
        logits, answers = module(batch["input"]), mlp(1)(batch["input"]).detach()
        counts = mask_of(batch) if masked else torch.ones(10, 3).bool()
        kl = kl_of_rows(logits, answers.softmax(-1)) * (counts & route(batch)[:, None])
        return 0.5 * of_tokens(logits, batch["labels"]) + 0.5 * kl.sum() / counts.sum()

    found = trained.state.model.module
    expected = train_by_hand(mlp(0), loader(shape=(3,)), by_hand)
    assert_close(found[0] if dim == 1 else found, expected)


class Moved(torch.nn.Module):
    def forward(self, logits):
        return logits.movedim(-1, 1)


def test_judged_and_routed_answers_train_as_a_loop_by_hand():
    sure = teacher_confident(0.6)
    trained = fit(
        Named(mlp(0)),
        Distillation(Teacher(mlp(1), route=low), KLDivergence(1.0), 0.5, 0.5, mask_fn=sure),
        train_dataloader=loader(),
        device_train_microbatch_size=2,
    )

    def by_hand(module, batch):
        logits, target = module(batch["input"]), mlp(1)(batch["input"]).softmax(-1).detach()
        kl = kl_of_rows(logits, target) * (low(batch) & (target.amax(-1) > 0.6))
        return 0.5 * F.cross_entropy(logits, batch["labels"]) + 0.5 * kl.mean()

    assert_close(trained.state.model.module, train_by_hand(mlp(0), loader(), by_hand))


def test_cached_teachers_are_routed_by_their_names(tmp_path):
    def train(*teachers):
        term = Distillation(teachers, KLDivergence(2.0), 0.5, 0.5, route_by="teacher")
        return fit(Named(mlp(0)), term, train_dataloader=loader()).state.model

    cache_teacher(mlp(1), loader(), tmp_path / "cache")
    live = [Teacher(mlp(1), name="math"), Teacher(mlp(2), name="code")]
    assert_same(train(CachedTeacher(tmp_path / "cache", name="math"), live[1]), train(*live))


def test_a_resumed_run_ends_bitwise_where_the_straight_one_ends(tmp_path):
    def trainer(**kwargs):
        teachers = [Teacher(mlp(1), name="math"), Teacher(mlp(2), name="code")]
        term = Distillation(teachers, KLDivergence(2.0), 0.5, 0.5, route_by="teacher")
        student = Named(mlp(0, dropout=0.5))
        return trainer_for(student, term, train_dataloader=loader(40, 10), **kwargs)

    straight = trainer(save_folder=str(tmp_path), save_interval="2ba")
    straight.fit()
    straight.close()
    resumed = trainer(load_path=str(tmp_path / "ep0-ba2-rank0.pt"))
    resumed.fit()
    resumed.close()
    assert_same(resumed.state.model, straight.state.model)


def test_a_teachers_nan_is_noticed_by_its_name():
    broken = mlp(2)
    torch.nn.init.constant_(broken[0].weight, float("nan"))
    teachers = [Teacher(mlp(1), name="math"), Teacher(broken, name="code")]
    term = Distillation(teachers, KLDivergence(1.0), route_by="teacher")
    with pytest.raises(ValueError, match=r"teacher 1 \(code\): its logits hold NaN"):
        fit(Named(mlp(0)), term, train_dataloader=loader())
    term = Distillation(teachers, KLDivergence(1.0), route_by="teacher", on_nonfinite="skip")
    trained = fit(Named(mlp(0)), term, train_dataloader=loader())
    assert logged(trained, "distillation/skipped") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("column", "error", "match"),
    [
        (
            "teachers",
            ValueError,
            "route_by='teachers': the batch holds no such entry, but .*'number'",
        ),
        ("number", TypeError, "route_by='number': the batch's entry must be a list of names, got"),
        ("teacher", ValueError, "the batch names 'code', but the teachers are called 'math', 'x'"),
    ],
)
def test_a_column_that_tells_no_teacher(column, error, match):
    teachers = [Teacher(mlp(1), name="math"), Teacher(mlp(2), name="x")]
    term = Distillation(teachers, forward_kl(), route_by=column)
    with pytest.raises(error, match=match):
        fit(Named(mlp(0)), term, train_dataloader=loader())


@pytest.mark.parametrize(
    ("route", "error", "match"),
    [
        (lambda b: b["number"], TypeError, r"teacher 0 \(Sequential\): route must return a bool"),
        (lambda b: b["number"][:3] > 1, ValueError, r"each of the 10 samples.*the shape \(3,\)"),
        (lambda b: b["nothing"], KeyError, "nothing"),
    ],
)
def test_a_route_that_tells_no_samples(route, error, match):
    term = Distillation(Teacher(mlp(1), route=route), forward_kl())
    with pytest.raises(error, match=match):
        fit(Named(mlp(0)), term, train_dataloader=loader())


@pytest.mark.parametrize(
    ("loss", "options", "match"),
    [
        (FusedLinearKL(), {}, "FusedLinearKL needs each teacher's answer to every sample"),
        (KLDivergence(), {"n_teachers_to_sample": 1}, "n_teachers_to_sample needs"),
        (KLDivergence(), {"eval_teachers": True}, "eval_teachers needs"),
        (KLDivergence(reduction="batchmean"), {}, "a route leaves positions out of.*'batchmean'"),
        (None, {"feature_terms": [FeatureTerm("0", loss=HiddenMSE())]}, "feature_terms needs"),
    ],
)
def test_what_needs_all_answers_is_refused(loss, options, match):
    with pytest.raises(ValueError, match=match):
        Distillation([Teacher(mlp(1), route=low), mlp(2)], loss, **options)


def test_a_teacher_can_be_found_in_one_way_alone():
    with pytest.raises(ValueError, match=r"teacher 1 \(Sequential\).*by their names, and it"):
        Distillation([Teacher(mlp(1), name="a"), mlp(2)], forward_kl(), route_by="teacher")
    with pytest.raises(ValueError, match=r"teacher 0 \(a\): it has a route, and route_by"):
        Distillation(Teacher(mlp(1), name="a", route=low), forward_kl(), route_by="teacher")
    with pytest.raises(TypeError, match="route_by must be the name of a batch's entry, got int"):
        Distillation(Teacher(mlp(1), name="a"), forward_kl(), route_by=3)
