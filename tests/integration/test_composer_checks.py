"""What Composer's own test suite asks of each of its algorithms, asked of this one."""

import ast
import copy

import pytest
import torch
from composer import Time
from composer.core import Algorithm, Event
from composer.utils import export_for_inference
from integration.harness import (
    Classifier,
    assert_differ,
    assert_same,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    trainer_for,
)
from torch import nn

from composer_distill import Distillation, KLDivergence


def distil(**kwargs):
    return Distillation([mlp(1), mlp(2)], KLDivergence(2.0), n_teachers_to_sample=1, **kwargs)


def test_it_trains():
    before, student = mlp(0), Classifier(mlp(0))
    fit(student, distil(), max_duration="2ba")
    assert_differ(student.module, before)


def test_it_trains_two_batches_and_then_one_more():
    trainer = trainer_for(Classifier(mlp(0)), distil(), max_duration="2ba")
    trainer.fit()
    trainer.fit(duration="1ba")
    trainer.close()
    straight = fit(Classifier(mlp(0)), distil(), max_duration="3ba")
    assert_same(trainer.state.model, straight.state.model)
    assert len(logged(trainer, "loss/train/kd")) == 3


def test_it_is_an_algorithm_that_matches_no_event_it_does_not_answer():
    term = distil()
    assert isinstance(term, Algorithm)
    trainer = trainer_for(Classifier(mlp(0)), term)
    idle = {Event.EPOCH_START, Event.EPOCH_END, Event.EVAL_START, Event.PREDICT_START}
    assert not any(term.match(event, trainer.state) for event in idle)
    trainer.close()


def function_distance(student, teacher):
    return (student - teacher).square().mean()


@pytest.mark.parametrize(
    "term",
    [
        distil(),
        distil(start_dur="200ba", end_dur=0.5, seed=3),
        distil(kd_loss_weight=lambda state: 0.5),
        Distillation(nn.Linear(2, 2), nn.MSELoss(), combine="logits"),
        Distillation(nn.Linear(2, 2), function_distance, end_dur=Time.from_epoch(3)),
        Distillation(nn.Linear(2, 2), forward_kl(2.0)),
    ],
    ids=["plain", "window", "schedule", "module", "function", "closure"],
)
def test_its_repr_reads_as_python_without_addresses(term):
    text = repr(term)
    assert "0x" not in text
    call = ast.parse(text.replace("<locals>", "locals").replace("<lambda>", "function")).body[0]
    assert call.value.func.id == "Distillation"
    assert text == repr(term)


def test_its_repr_gives_its_arguments_back():
    term = distil(kd_loss_weight=0.7, org_loss_weight=0.2, start_dur="2ba", end_dur=0.5, seed=4)
    names = {"Distillation": dict, "KLDivergence": KLDivergence}
    arguments = eval(repr(term), names)
    again = Distillation(**{**arguments, "teachers": [mlp(1), mlp(2)]})
    assert repr(again) == repr(term)
    assert (again.kd_loss_weight, again.org_loss_weight, again.seed) == (0.7, 0.2, 4)
    assert again.window == term.window
    assert again.kd_loss_fn.temperature == 2.0


def test_the_exported_model_answers_as_the_trained_one(tmp_path):
    student = Classifier(mlp(0))
    fit(student, distil())
    inputs = next(iter(loader()))[0]
    expected = student.module.eval()(inputs)
    path = str(tmp_path / "model.pt")
    export_for_inference(model=student.module, save_format="torchscript", save_path=path)
    exported = torch.jit.load(path)
    torch.testing.assert_close(exported(inputs), expected)
    assert len(list(exported.parameters())) == len(list(mlp(0).parameters()))


def test_a_trained_student_can_be_copied_without_its_teachers():
    student = Classifier(mlp(0))
    fit(student, distil())
    copied = copy.deepcopy(student)
    assert_same(copied, student)
    assert len(list(copied.modules())) == len(list(Classifier(mlp(0)).modules()))
