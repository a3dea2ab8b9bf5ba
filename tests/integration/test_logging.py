"""What a run logs: one exact value a batch, at the step and in the place where a user looks."""

import pytest
import torch
from composer.core import Event
from composer.loggers import FileLogger, InMemoryLogger
from integration.harness import (
    LEARNING_RATE,
    Classifier,
    Spy,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    steps_of,
    train_by_hand,
)
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence
from composer_distill.training import logbook

EXACT = {"rel": 1e-5, "abs": 1e-7}
ALWAYS = {
    "loss/train/kd",
    "loss/train/org",
    "distillation/kd_loss_weight",
    "distillation/org_loss_weight",
    "distillation/agreement",
}


def values_by_hand(teacher, student, batches, kd_weight, org_weight, temperature):
    """Return the values of every batch, each seen before its own step."""
    rows = []
    for batch in batches:
        logits, target = student(batch[0]).detach(), teacher(batch[0]).detach()
        kd = forward_kl(temperature)(logits, target).item()
        org = F.cross_entropy(logits, batch[1]).item()
        agreement = (logits.argmax(-1) == target.argmax(-1)).double().mean()
        rows.append(
            {
                "loss/train/kd": kd,
                "loss/train/org": org,
                "loss/train/total": kd_weight * kd + org_weight * org,
                "distillation/kd_loss_weight": kd_weight,
                "distillation/org_loss_weight": org_weight,
                "distillation/agreement": agreement.item(),
            }
        )

        def objective(module, batch):
            logits = module(batch[0])
            kd = forward_kl(temperature)(logits, teacher(batch[0]).detach())
            return kd_weight * kd + org_weight * F.cross_entropy(logits, batch[1])

        student = train_by_hand(student, [batch], objective, lr=LEARNING_RATE)
    return rows


@pytest.mark.parametrize("microbatch", [10, 4, 3])
def test_one_exact_value_a_batch_for_every_microbatch_size(microbatch):
    teacher, student = mlp(1), Classifier(mlp(0))
    rows = values_by_hand(teacher, student.module, loader(40), 0.7, 0.3, 2.0)
    trainer = fit(
        student,
        Distillation(teacher, KLDivergence(2.0), 0.7, 0.3, telemetry=False),
        train_dataloader=loader(40),
        device_train_microbatch_size=microbatch,
    )
    for name in rows[0]:
        assert logged(trainer, name) == pytest.approx([row[name] for row in rows], **EXACT), name
    assert len(set(logged(trainer, "distillation/agreement"))) > 1


def test_every_value_stands_at_the_step_of_composers_own_loss():
    trainer = fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()), max_duration="2ep")
    assert steps_of(trainer, "loss/train/total") == [0, 1, 2, 3]
    for name in ALWAYS:
        assert steps_of(trainer, name) == [0, 1, 2, 3], name


def test_nothing_is_logged_outside_the_window():
    term = Distillation(mlp(1), KLDivergence(), start_dur="1ba", end_dur="3ba")
    trainer = fit(Classifier(mlp(0)), term, max_duration="3ep")
    ours = [name for name in entries_of(trainer) if "distillation" in name or name in ALWAYS]
    assert set(ours) >= ALWAYS
    for name in ours:
        assert steps_of(trainer, name) == [1, 2], name


def test_a_weight_of_zero_logs_the_weights_alone():
    plain = fit(Classifier(mlp(0)))
    trainer = fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence(), 0.0, 0.5))
    assert entries_of(trainer).keys() - entries_of(plain).keys() == {
        "distillation/kd_loss_weight",
        "distillation/org_loss_weight",
    }
    assert logged(trainer, "distillation/kd_loss_weight") == [0.0, 0.0]
    assert logged(trainer, "distillation/org_loss_weight") == [0.5, 0.5]


def test_schedules_log_the_weight_of_their_batch():
    term = Distillation(
        mlp(1),
        KLDivergence(),
        kd_loss_weight=lambda state: 1.0 / (1 + int(state.timestamp.batch)),
        org_loss_weight=lambda state: float(int(state.timestamp.batch)),
    )
    trainer = fit(Classifier(mlp(0)), term, max_duration="2ep", device_train_microbatch_size=5)
    assert logged(trainer, "distillation/kd_loss_weight") == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4])
    assert logged(trainer, "distillation/org_loss_weight") == pytest.approx([0, 1, 2, 3])


def dict_loss(logits, targets):
    ce, l2 = F.cross_entropy(logits, targets), logits.square().mean()
    return {"ce": ce, "l2": l2}


def dict_loss_with_total(logits, targets):
    parts = dict_loss(logits, targets)
    return {"total": parts["ce"] + 0.5 * parts["l2"], **parts}


@pytest.mark.parametrize(
    ("loss_fn", "share_of_l2"), [(dict_loss, 1.0), (dict_loss_with_total, 0.5)]
)
def test_a_dict_loss_logs_its_entries_unweighted_and_the_total_as_trained(loss_fn, share_of_l2):
    student, teacher = Classifier(mlp(0), loss_fn), mlp(1)
    batch = next(iter(loader()))
    logits, target = student.module(batch[0]).detach(), teacher(batch[0]).detach()
    ce, l2 = F.cross_entropy(logits, batch[1]), logits.square().mean()
    org, kd = ce + share_of_l2 * l2, forward_kl(2.0)(logits, target)
    term = Distillation(teacher, KLDivergence(2.0), 0.7, 0.3)
    trainer = fit(student, term, max_duration="1ba", device_train_microbatch_size=4)
    expected = {"ce": ce, "l2": l2, "org": org, "kd": kd, "total": 0.3 * org + 0.7 * kd}
    for name, value in expected.items():
        assert logged(trainer, f"loss/train/{name}") == pytest.approx([float(value)], **EXACT), name


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda x, y: F.cross_entropy(x, y, reduction="none"),
        lambda x, y: F.cross_entropy(x, y).reshape(1),
        lambda x, y: (0.5 * F.cross_entropy(x, y), 0.5 * F.cross_entropy(x, y)),
        lambda x, y: [0.5 * F.cross_entropy(x, y), 0.5 * F.cross_entropy(x, y)],
    ],
    ids=["vector", "shape (1,)", "tuple", "list"],
)
def test_the_students_own_loss_is_logged_for_every_kind(loss_fn):
    student = Classifier(mlp(0), loss_fn)
    inputs, targets = next(iter(loader()))
    expected = F.cross_entropy(student.module(inputs), targets).item()
    term = Distillation(mlp(1), KLDivergence())
    trainer = fit(student, term, max_duration="1ba", device_train_microbatch_size=4)
    assert logged(trainer, "loss/train/org") == pytest.approx([expected], **EXACT)


def test_an_output_without_classes_logs_no_agreement():
    student = Classifier(mlp(0)[:-1].append(torch.nn.Linear(8, 1).double()), lambda x, _: x.mean())
    teacher = mlp(1)[:-1].append(torch.nn.Linear(8, 1).double())
    trainer = fit(student, Distillation(teacher, torch.nn.MSELoss()))
    assert len(logged(trainer, "loss/train/kd")) == 2
    assert "distillation/agreement" not in entries_of(trainer)


def test_every_logger_of_composer_receives_the_values(tmp_path):
    memory = InMemoryLogger()
    file = FileLogger(str(tmp_path / "log.txt"), remote_file_name=None, flush_interval=1)
    fit(Classifier(mlp(0)), Distillation(mlp(1), KLDivergence()), loggers=[memory, file])
    text = (tmp_path / "log.txt").read_text()
    for name in ALWAYS:
        assert len(memory.data[name]) == 2, name
        assert text.count(f"{name}:") == 2, name


def test_no_value_keeps_a_batch_waiting_for_the_next():
    # The values of batch i are out by the end of batch i, where callbacks may read them.
    term = Distillation(mlp(1), KLDivergence())
    memory = InMemoryLogger()
    counts = Spy(Event.BATCH_CHECKPOINT, lambda _: len(memory.data["loss/train/kd"]))
    fit(Classifier(mlp(0)), term, loggers=[memory], callbacks=counts, max_duration="2ep")
    assert counts.seen == [1, 2, 3, 4]


def test_two_instances_log_under_their_own_names():
    teachers, student = [mlp(1), mlp(2)], Classifier(mlp(0))
    inputs, targets = next(iter(loader()))
    logits = student.module(inputs).detach()
    first = Distillation(teachers[0], KLDivergence(2.0), 0.5, 0.4)
    second = Distillation(teachers[1], KLDivergence(1.0), 0.25, 0.5)
    trainer = fit(student, [first, second], max_duration="1ba", device_train_microbatch_size=4)
    org = F.cross_entropy(logits, targets).item()
    kd = [
        forward_kl(t)(logits, x(inputs)).item() for t, x in zip((2.0, 1.0), teachers, strict=True)
    ]
    expected = {
        "loss/train/kd": kd[0],
        "loss/train/kd_2": kd[1],
        "loss/train/org": org,
        "loss/train/org_2": org,
        "distillation/kd_loss_weight": 0.5,
        "distillation_2/kd_loss_weight": 0.25,
        "distillation/org_loss_weight": 0.4,
        "distillation_2/org_loss_weight": 0.5,
        "loss/train/total": 0.5 * kd[0] + 0.25 * kd[1] + 0.4 * 0.5 * org,
    }
    for name, value in expected.items():
        assert logged(trainer, name) == pytest.approx([value], **EXACT), name
    assert len(logged(trainer, "distillation/agreement")) == 1
    assert len(logged(trainer, "distillation_2/agreement")) == 1


def test_values_of_several_ranks_keep_their_digits_under_another_default_type(monkeypatch):
    monkeypatch.setattr(logbook.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(logbook.dist, "all_reduce", lambda tensor: tensor.mul_(2))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = logbook._mean_over_ranks([1.2345678, 1000.25], torch.device("cpu"))
    finally:
        torch.set_default_dtype(before)
    assert found == pytest.approx([1.2345678, 1000.25], rel=1e-6)
