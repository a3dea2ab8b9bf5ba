"""Guards of terms of features that only a whole run shows."""

import io
from pickle import UnpicklingError

import pytest
import torch
from composer.core import Algorithm, Event
from integration.harness import (
    Classifier,
    assert_close,
    fit,
    loader,
    logged,
    mlp,
    train_by_hand,
    trainer_for,
)
from torch import nn
from torch.nn import functional as F

from composer_distill import Distillation, FeatureTerm
from composer_distill.losses import CKA, HiddenMSE
from composer_distill.terms.features.companions import Companions
from composer_distill.training.companions import CompanionTrainer


def hidden(module, inputs):
    return module[1](module[0](inputs))


class ReadsTwice(Classifier):
    """A student whose own loss runs a layer again, after its forward."""

    def loss(self, outputs, batch):
        return super().loss(outputs, batch) + hidden(self.module, batch[0]).square().mean()


def test_what_the_students_own_loss_runs_again_is_not_heard():
    teacher, student = mlp(1), ReadsTwice(mlp(0))

    def objective(module, batch):
        inside = hidden(module, batch[0])
        own = F.cross_entropy(module(batch[0]), batch[1]) + inside.square().mean()
        return 0.1 * own + (inside - hidden(teacher, batch[0]).detach()).square().mean()

    expected = train_by_hand(student.module, loader(), objective)
    fit(student, Distillation(teacher, None, feature_terms=[FeatureTerm("1", loss=HiddenMSE())]))
    assert_close(student.module, expected)


class Replaces(Algorithm):
    """Puts another layer in the place of one, after the terms found it."""

    def match(self, event, state):
        return event is Event.INIT

    def apply(self, event, state, logger):
        state.model.module[1] = nn.ReLU()


def test_a_layer_that_another_algorithm_replaces_is_found_anew():
    teacher, student = mlp(1), Classifier(mlp(0))
    module = nn.Sequential(mlp(0)[0], nn.ReLU(), *mlp(0)[2:])

    def objective(module, batch):
        inside = hidden(module, batch[0])
        feature = (inside - hidden(teacher, batch[0]).detach()).square().mean()
        return 0.1 * F.cross_entropy(module(batch[0]), batch[1]) + feature

    expected = train_by_hand(module, loader(), objective)
    term = FeatureTerm("1", loss=HiddenMSE())
    fit(student, [Distillation(teacher, None, feature_terms=[term]), Replaces()])
    assert_close(student.module, expected)


class Spoils(nn.Module):
    """Makes NaN of the first sample."""

    def forward(self, inputs):
        return torch.cat([inputs[:1] * torch.nan, inputs[1:]])


def all_but_the_first(batch, outputs):
    return torch.arange(len(outputs)) > 0


def test_a_teachers_nan_where_nothing_counts_stops_no_run():
    teacher, student = nn.Sequential(mlp(1)[0], Spoils()), Classifier(mlp(0))

    def objective(module, batch):
        distance = module[0](batch[0])[1:] - teacher[0](batch[0])[1:].detach()
        return 0.1 * F.cross_entropy(module(batch[0]), batch[1]) + distance.square().mean()

    expected = train_by_hand(student.module, loader(), objective)
    term = FeatureTerm("0", "1", loss=HiddenMSE(), mask_fn=all_but_the_first)
    fit(student, Distillation(teacher, None, feature_terms=[term]))
    assert_close(student.module, expected)


def test_a_loss_of_many_values_is_their_mean_and_one_without_gradient_an_error():
    trained = []
    for loss in (HiddenMSE(), lambda student, teacher: (student - teacher).square()):
        student = Classifier(mlp(0))
        fit(student, Distillation(mlp(1), None, feature_terms=[FeatureTerm("1", loss=loss)]))
        trained.append(student)
    assert_close(*trained)
    broken = FeatureTerm("1", loss=lambda student, teacher: teacher.mean())
    trainer = trainer_for(Classifier(mlp(0)), Distillation(mlp(1), None, feature_terms=[broken]))
    with pytest.raises(TypeError, match="must return a tensor with a gradient path"):
        trainer.fit()
    trainer.close()


def test_two_terms_of_one_name_are_told_apart():
    terms = [FeatureTerm("1", loss=HiddenMSE()), FeatureTerm("1", loss=CKA(), weight=2.0)]
    trainer = fit(Classifier(mlp(0)), Distillation(mlp(1), None, feature_terms=terms))
    values = [logged(trainer, f"distillation/features/{name}") for name in ("1", "1_2")]
    assert [len(found) for found in values] == [2, 2]
    assert values[0] != values[1]
    assert logged(trainer, "distillation/feature_weight/1_2") == [2.0, 2.0]


@pytest.mark.parametrize("projector", [None, "linear"])
def test_what_is_in_half_precision_is_compared_in_whole(projector):
    kinds, half = [], torch.bfloat16

    def loss(student, teacher):
        kinds.append((student.dtype, teacher.dtype))
        return (student - teacher).square().mean()

    term = FeatureTerm("1", loss=loss, projector=projector)
    algorithm = Distillation(mlp(1, dtype=half), None, feature_terms=[term])
    fit(Classifier(mlp(0, dtype=half)), algorithm, train_dataloader=loader(dtype=half))
    assert kinds == [(torch.float32, torch.float32)] * 2


class Writes:
    """What a pickle may hold instead of numbers."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_in_the_state_of_projectors_is_executed(tmp_path):
    buffer = io.BytesIO()
    torch.save({"key": {"module": Writes(tmp_path / "written")}}, buffer)
    with pytest.raises(UnpicklingError, match="Weights only load failed"):
        CompanionTrainer(Companions(), None).load_state_dict(buffer.getvalue())
    assert not (tmp_path / "written").exists()


def test_what_a_checkpoint_holds_of_projectors_that_are_not_made_again_stays():
    """Of a term whose window is over, and of one whose time has not come."""
    buffer = io.BytesIO()
    torch.save({"key": {"module": nn.Linear(2, 2).state_dict()}}, buffer)
    trainer = CompanionTrainer(Companions(), None)
    trainer.load_state_dict(buffer.getvalue())
    kept = torch.load(io.BytesIO(trainer.state_dict()), weights_only=True)
    before = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    torch.testing.assert_close(kept, before, rtol=0, atol=0)
