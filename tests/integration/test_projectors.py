"""Projectors in real Trainers: trained beside the student, and never a part of it."""

import copy
from types import SimpleNamespace

import pytest
import torch
from composer.algorithms import SAM, GradientClipping
from composer.core import Event, Precision
from composer.optim import LinearScheduler
from integration.harness import (
    Classifier,
    Spy,
    assert_close,
    assert_same,
    fit,
    loader,
    logged,
    mlp,
    trainer_for,
)
from integration.workers.features import projected, projectors_of
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, FeatureTerm
from composer_distill.losses import HiddenMSE, VariationalInformation
from composer_distill.terms.features.companions import Companions, build_projector
from composer_distill.training.companions import CompanionTrainer

KEY = "3/teacher 0/3"


def by_hand(student, teacher, projector, batches, optimizers, schedule=None, clip=None):
    """Train both together in plain torch."""
    for number, (inputs, targets) in enumerate(batches):
        if schedule is not None:
            for optimizer, lr in zip(optimizers, schedule[number], strict=True):
                optimizer.param_groups[0]["lr"] = lr
        logits = student(inputs)
        hidden = teacher[1](teacher[0](inputs)).detach()
        loss = 0.1 * F.cross_entropy(logits, targets)
        loss = loss + 2.0 * (projector(logits) - hidden).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            for module in (student, projector):
                nn.utils.clip_grad_norm_(module.parameters(), clip)
        for optimizer in optimizers:
            optimizer.step()


def first_projector(kind="linear", key=KEY):
    student, teacher = (torch.zeros(2, width, dtype=torch.float64) for width in (4, 8))
    return build_projector(kind, student, teacher, key)


@pytest.mark.parametrize("microbatch", [3, 10])
@pytest.mark.parametrize("kind", ["linear", "mlp", "module"])
def test_a_projector_trains_as_a_part_of_the_student_would(kind, microbatch):
    given = nn.Linear(4, 8, bias=False).double() if kind == "module" else kind
    student, projector = mlp(0), first_projector(given)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=0.05) for m in (student, projector)]
    by_hand(student, mlp(1), projector, list(loader()) * 2, optimizers)
    trained = Classifier(mlp(0))
    algorithm = projected(mlp(1), given)
    fit(
        trained,
        algorithm,
        optimizers=torch.optim.AdamW(trained.parameters(), lr=0.05),
        max_duration="2ep",
        device_train_microbatch_size=microbatch,
    )
    assert_close(trained.module, student)
    assert_close(projectors_of(algorithm)[KEY], projector)


def test_the_learning_rate_and_the_clipping_are_the_students():
    student, projector = mlp(0), first_projector()
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (student, projector)]
    rates = Spy(Event.AFTER_TRAIN_BATCH, lambda s: s.optimizers[0].param_groups[0]["lr"])
    trained, algorithm = Classifier(mlp(0)), projected(mlp(1))
    fit(
        trained,
        [algorithm, GradientClipping(clipping_type="norm", clipping_threshold=0.2)],
        schedulers=LinearScheduler(alpha_f=0.1),
        max_duration="2ep",
        callbacks=rates,
    )
    assert len(set(rates.seen)) == 3
    schedule = [(lr, lr) for lr in rates.seen]
    by_hand(student, mlp(1), projector, list(loader()) * 2, optimizers, schedule, clip=0.2)
    assert_close(trained.module, student)
    assert_close(projectors_of(algorithm)[KEY], projector)


def test_an_optimizer_of_its_own():
    student, projector = mlp(0), first_projector()
    optimizers = [
        torch.optim.SGD(student.parameters(), lr=0.5),
        torch.optim.Adam(projector.parameters(), lr=0.01),
    ]
    by_hand(student, mlp(1), projector, loader(), optimizers)
    trained = Classifier(mlp(0))
    algorithm = projected(mlp(1), make=lambda parameters: torch.optim.Adam(parameters, lr=0.01))
    fit(trained, algorithm)
    assert_close(trained.module, student)
    assert_close(projectors_of(algorithm)[KEY], projector)


def test_a_projector_is_no_part_of_the_student_and_draws_from_no_stream(tmp_path):
    keys, streams = [], []
    for algorithms in ((), projected(mlp(1), weight=1e-9)):
        student = Classifier(mlp(0, dropout=0.5))
        trainer = trainer_for(student, algorithms)
        trainer.fit()
        streams.append(torch.get_rng_state())
        path = trainer.save_checkpoint(str(tmp_path / "saved"))
        trainer.close()
        state = torch.load(path, weights_only=False)["state"]
        optimizers = state["optimizers"]["SGD"]
        keys.append((list(state["model"]), list(student.state_dict()), str(optimizers.keys())))
    assert keys[0] == keys[1]
    assert torch.equal(*streams)


def test_each_run_begins_with_what_was_given():
    given, algorithm = nn.Linear(4, 8).double(), None
    before = copy.deepcopy(given)
    algorithm = projected(mlp(1), given)
    ends = []
    for _ in range(2):
        student = Classifier(mlp(0))
        fit(student, algorithm)
        ends.append((student, copy.deepcopy(projectors_of(algorithm)[KEY])))
    assert_same(given, before)
    for first, second in zip(*ends, strict=True):
        assert_same(first, second)


@pytest.mark.filterwarnings("ignore:The dataloader")
@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_ends_bitwise_where_the_straight_one_ends(tmp_path, stop):
    def run(**kwargs):
        student = Classifier(mlp(0, dropout=0.5))
        term = FeatureTerm("1", loss=VariationalInformation(dim=-1), projector="linear")
        later = FeatureTerm("3", "1", loss=HiddenMSE(), projector="mlp", start_dur="2ba")
        algorithm = Distillation(mlp(1), None, feature_terms=[term, later])
        trainer = fit(
            student,
            algorithm,
            optimizers=torch.optim.AdamW(student.parameters(), lr=0.05),
            max_duration="2ep",
            **kwargs,
        )
        return (
            student,
            nn.ModuleDict({str(i): m for i, m in enumerate(projectors_of(algorithm).values())}),
            trainer,
        )

    straight = run(save_folder=str(tmp_path), save_interval="1ba", save_filename="ba{batch}.pt")
    resumed = run(load_path=str(tmp_path / f"ba{stop}.pt"))
    assert_same(resumed[0], straight[0])
    assert len(straight[1]) == 3
    assert_same(resumed[1], straight[1])


def test_the_variances_of_a_loss_train_and_the_users_own_stay():
    loss = VariationalInformation(dim=-1)
    algorithm = Distillation(mlp(1), None, feature_terms=[FeatureTerm("1", loss=loss)])
    fit(Classifier(mlp(0)), algorithm)
    (trained,) = projectors_of(algorithm).values()
    assert trained.variance.shape == (8,)
    assert (trained.variance - 5.0).abs().min() > 1e-4
    assert isinstance(loss.scale, nn.UninitializedParameter)


@pytest.mark.filterwarnings("ignore:SAM has known issues")
def test_sam_is_refused():
    trainer = trainer_for(Classifier(mlp(0)), [projected(mlp(1)), SAM(interval=1)])
    with pytest.raises(ValueError, match=r"passes over each batch several times.*without SAM"):
        trainer.fit()
    trainer.close()


def test_a_loss_that_needs_equal_widths_asks_for_a_projector():
    algorithm = Distillation(mlp(1), None, feature_terms=[FeatureTerm("3", "1", HiddenMSE())])
    trainer = trainer_for(Classifier(mlp(0)), algorithm)
    with pytest.raises(ValueError, match=r"\(10, 4\) and \(10, 8\).*projector='linear'"):
        trainer.fit()
    trainer.close()


def test_what_can_be_no_projector_is_refused():
    with pytest.raises(ValueError, match="projector must be one of 'linear', 'conv1x1', 'mlp'"):
        FeatureTerm("3", loss=HiddenMSE(), projector="conv")
    with pytest.raises(ValueError, match=r"maps axis 1 .* got \(2, 4\) and \(2, 8\)"):
        first_projector("conv1x1")
    with pytest.raises(TypeError, match="a projector maps one tensor"):
        build_projector("linear", (torch.zeros(2, 3, 4),) * 3, torch.zeros(2, 3, 4), "a/0")


def test_a_module_that_came_frozen_and_in_eval_mode_trains():
    given = nn.Sequential(nn.Linear(4, 8), nn.Dropout()).eval().requires_grad_(False)
    made = first_projector(given)
    assert made.training
    assert made[1].training
    assert all(parameter.requires_grad for parameter in made.parameters())
    assert not given.training


def test_a_convolution_maps_channels_of_any_space():
    for space in ((5,), (5, 3), (5, 3, 2)):
        student, teacher = torch.zeros(2, 4, *space), torch.zeros(2, 6, *space)
        projector = build_projector("conv1x1", student, teacher, "a/0")
        assert projector(student).shape == teacher.shape


def scaled(scale=1024.0):
    """A state of amp_fp16 whose scaler works on a CPU, and a companion with scaled gradients."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    student = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    state = SimpleNamespace(
        precision=Precision.AMP_FP16, scaler=scaler, algorithms=[], optimizers=[optimizer]
    )
    trainer = CompanionTrainer(Companions(), None)
    projector = trainer.companions.take("a", lambda: nn.Linear(2, 2))
    inputs = torch.ones(1, 2)
    loss = projector(student(inputs)).square().sum()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    return state, trainer, projector, optimizer


@pytest.mark.parametrize("who", ["nobody", "student", "projector"])
def test_the_scaler_of_half_precision_is_respected(who):
    state, trainer, projector, optimizer = scaled()
    before = copy.deepcopy(projector)
    if who == "student":
        next(iter(optimizer.param_groups[0]["params"])).grad.fill_(float("inf"))
        state.scaler._per_optimizer_states.clear()
        state.scaler.unscale_(optimizer)
    if who == "projector":
        projector.weight.grad.fill_(float("inf"))
    gradient = projector.bias.grad / 1024.0
    trainer.end_pass(state)
    torch.testing.assert_close(projector.bias.grad, gradient)
    state.scaler.step(optimizer)
    state.scaler.update()
    trainer.step(state)
    if who == "nobody":
        torch.testing.assert_close(projector.bias, before.bias - 0.1 * gradient)
    else:
        assert_same(projector, before)
    assert projector.bias.grad is None


def test_logs_tell_the_loss_behind_the_projector():
    algorithm = projected(mlp(1))
    trainer = fit(Classifier(mlp(0)), algorithm, max_duration="1ba")
    inputs, _ = next(iter(loader()))
    expected = F.mse_loss(first_projector()(mlp(0)(inputs)), mlp(1)[1](mlp(1)[0](inputs))).item()
    assert logged(trainer, "distillation/features/3") == [pytest.approx(expected, rel=1e-6)]
