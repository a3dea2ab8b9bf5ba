"""The teachers on the evaluation sets: on request, exact, and without a trace in training."""

import pytest
import torch
from composer import Evaluator
from composer.metrics import CrossEntropy
from integration.harness import (
    N_CLASSES,
    Classifier,
    Noisy,
    Recorder,
    assert_same,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    trainer_for,
)
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from composer_distill import Distillation, KLDivergence, Teacher


class Measured(Classifier):
    """A classifier with the metrics that a user would give it."""

    def get_metrics(self, is_train):
        accuracy = MulticlassAccuracy(N_CLASSES, average="micro")
        return {} if is_train else {"MulticlassAccuracy": accuracy, "CrossEntropy": CrossEntropy()}

    def eval_forward(self, batch, outputs=None):
        return self.forward(batch) if outputs is None else outputs

    def update_metric(self, batch, outputs, metric):
        metric.update(outputs, batch[1])


def sets():
    """Return two evaluation sets with a last batch that is short."""
    return [
        Evaluator(label="seen", dataloader=loader(10, 4), device_eval_microbatch_size=2),
        Evaluator(label="unseen", dataloader=loader(13, 4, seed=7), device_eval_microbatch_size=1),
    ]


def examples(label):
    return (loader(10, 10) if label == "seen" else loader(13, 13, seed=7)).dataset.tensors


def evaluated(student, algorithms):
    """Evaluate without training; return what was logged."""
    trainer = trainer_for(student, algorithms)
    trainer.eval(sets())
    trainer.close()
    return {name: values[-1][1] for name, values in entries_of(trainer).items()}


@pytest.mark.parametrize("label", ["seen", "unseen"])
def test_agreement_and_divergence_are_means_over_the_whole_set(label):
    teacher, student = mlp(1), Measured(mlp(0))
    found = evaluated(student, Distillation(teacher, KLDivergence(4.0), eval_teachers=True))
    inputs, _ = examples(label)
    mine, theirs = student.module(inputs).detach(), teacher(inputs).detach()
    kl = forward_kl(1.0)(mine, theirs).item()
    agreement = (mine.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert found[f"metrics/{label}/teacher_kl"] == pytest.approx(kl, rel=1e-5)
    assert found[f"metrics/{label}/teacher_agreement"] == pytest.approx(agreement, rel=1e-6)


@pytest.mark.parametrize("label", ["seen", "unseen"])
@pytest.mark.parametrize("metric", ["MulticlassAccuracy", "CrossEntropy"])
def test_a_teachers_metrics_are_those_of_the_teacher_evaluated_alone(label, metric):
    alone = evaluated(Measured(mlp(1)), ())
    found = evaluated(Measured(mlp(0)), Distillation(mlp(1), KLDivergence(), eval_teachers=True))
    expected = alone[f"metrics/{label}/{metric}"]
    assert found[f"metrics/{label}/teacher/{metric}"] == pytest.approx(expected, rel=1e-5)
    assert found[f"metrics/{label}/{metric}"] != pytest.approx(expected, rel=1e-5)


def test_each_of_several_teachers_has_its_own_metrics():
    alone = [evaluated(Measured(mlp(seed)), ()) for seed in (1, 2)]
    term = Distillation(
        [mlp(1), mlp(2)], KLDivergence(), eval_teachers=True, n_teachers_to_sample=1
    )
    found = evaluated(Measured(mlp(0)), term)
    for index in (0, 1):
        name = f"metrics/seen/teacher_{index}/CrossEntropy"
        assert found[name] == pytest.approx(alone[index]["metrics/seen/CrossEntropy"], rel=1e-5)


def test_all_teachers_answer_an_evaluation_combined_by_their_weights():
    first, second, student = mlp(1), mlp(2), Measured(mlp(0))
    teachers = [Teacher(first, weight=1.0), Teacher(second, weight=3.0)]
    term = Distillation(teachers, KLDivergence(), eval_teachers=True, n_teachers_to_sample=1)
    found = evaluated(student, term)
    inputs, _ = examples("unseen")
    target = 0.25 * first(inputs).detach() + 0.75 * second(inputs).detach()
    kl = forward_kl(1.0)(student.module(inputs).detach(), target).item()
    assert found["metrics/unseen/teacher_kl"] == pytest.approx(kl, rel=1e-5)


def test_no_teacher_runs_in_an_evaluation_unless_asked():
    teacher = Recorder(mlp(1))
    found = evaluated(Measured(mlp(0)), Distillation(teacher, KLDivergence()))
    assert teacher.inputs == []
    assert not any("teacher" in name for name in found)


def test_the_students_own_metrics_stay_what_they_were():
    plain = evaluated(Measured(mlp(0)), ())
    found = evaluated(Measured(mlp(0)), Distillation(mlp(1), KLDivergence(), eval_teachers=True))
    assert plain.keys() < found.keys()
    assert {name: found[name] for name in plain} == plain


@pytest.mark.parametrize("interval", ["1ep", "1ba"])
def test_evaluating_the_teachers_leaves_training_bitwise_as_it_was(interval):
    def trained(**kwargs):
        return fit(
            Measured(mlp(0, dropout=0.5)),
            Distillation(Noisy(mlp(1)), KLDivergence(), **kwargs),
            eval_dataloader=sets(),
            eval_interval=interval,
            max_duration="2ep",
            device_train_microbatch_size=5,
        )

    plain, watched = trained(), trained(eval_teachers=True)
    assert_same(watched.state.model, plain.state.model)
    for name in ("loss/train/kd", "metrics/seen/CrossEntropy"):
        assert logged(watched, name) == logged(plain, name)
    expected = 2 if interval == "1ep" else 4
    assert len(logged(watched, "metrics/seen/teacher_kl")) == expected


def test_the_distance_to_the_teacher_falls_as_the_student_learns():
    trainer = fit(
        Measured(mlp(0)),
        Distillation(mlp(1), KLDivergence(1.0), 1.0, 0.0, eval_teachers=True),
        eval_dataloader=sets(),
        eval_interval="5ep",
        max_duration="30ep",
        lr=0.2,
    )
    distances = logged(trainer, "metrics/seen/teacher_kl")
    assert distances[-1] < 0.5 * distances[0]
    assert logged(trainer, "metrics/seen/teacher/CrossEntropy") == pytest.approx(
        [logged(trainer, "metrics/seen/teacher/CrossEntropy")[0]] * len(distances)
    )


def test_two_instances_evaluate_under_their_own_names():
    terms = [
        Distillation(mlp(1), KLDivergence(), eval_teachers=True),
        Distillation(mlp(2), KLDivergence(), eval_teachers=True),
    ]
    found = evaluated(Measured(mlp(0)), terms)
    assert found["metrics/seen/teacher_kl"] != found["metrics/seen/teacher_kl_2"]


def test_teachers_are_evaluated_outside_the_window_too():
    term = Distillation(mlp(1), KLDivergence(), end_dur="1ba", eval_teachers=True)
    trainer = fit(Measured(mlp(0)), term, eval_dataloader=sets(), max_duration="2ep")
    assert len(logged(trainer, "metrics/seen/teacher_agreement")) == 2


def test_a_regression_has_no_agreement():
    def narrow(seed):
        return nn.Sequential(*mlp(seed)[:-1], nn.Linear(8, 1).double())

    student = Classifier(narrow(0), lambda x, y: (x[:, 0] - y).square().mean())
    term = Distillation(narrow(1), nn.MSELoss(), eval_teachers=True)
    with torch.random.fork_rng():
        trainer = fit(student, term, eval_dataloader=loader(10, 5, seed=7))
    assert "metrics/eval/teacher_agreement" not in entries_of(trainer)


def test_an_evaluation_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr("composer_distill.terms.guard.can_be_read", lambda tensor: False)
    term = Distillation(mlp(1), KLDivergence(2.0), eval_teachers=True)
    evaluated(Classifier(mlp(0)), [term])
    assert not term._events._terms[0].guard._extremes
    assert not term._events._terms[0].guard._latest
