"""Terms of features in real Trainers against loops in plain torch."""

import copy
import logging

import pytest
import torch
from composer.core import Event
from integration.harness import (
    LEARNING_RATE,
    Classifier,
    Spy,
    assert_close,
    assert_same,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
    train_by_hand,
    trainer_for,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from composer_distill import Distillation, FeatureTerm, Teacher
from composer_distill.losses import CKA, HiddenMSE

MICROBATCHES = [1, 3, 4, 10]


def hidden(module, inputs):
    """What layer 1 of the harness's classifier gives."""
    return module[1](module[0](inputs))


def square(student, teacher):
    return (student - teacher).square().mean()


def test_a_term_is_trained_beside_the_logits():
    teacher, student = mlp(1), Classifier(mlp(0))

    def objective(module, batch):
        logits = module(batch[0])
        task = F.cross_entropy(logits, batch[1])
        kd = forward_kl(2.0)(logits, teacher(batch[0]).detach())
        feature = square(hidden(module, batch[0]), hidden(teacher, batch[0]).detach())
        return 0.1 * task + 0.9 * kd + 3.0 * feature

    expected = train_by_hand(student.module, loader(), objective)
    term = FeatureTerm("1", loss=HiddenMSE(), weight=3.0)
    trained = [
        fit(
            Classifier(copy.deepcopy(student.module)),
            Distillation(teacher, forward_kl(2.0), feature_terms=[term]),
            device_train_microbatch_size=size,
        )
        for size in MICROBATCHES
    ]
    for trainer in trained:
        assert_close(trainer.state.model.module, expected)
        values = logged(trainer, "distillation/features/1")
        assert len(values) == 2
        assert values == pytest.approx(logged(trained[-1], "distillation/features/1"), rel=1e-6)
        assert logged(trainer, "distillation/feature_weight/1") == [3.0, 3.0]
    batch = next(iter(loader()))
    first = square(hidden(mlp(0), batch[0]), hidden(teacher, batch[0])).item()
    assert logged(trained[0], "distillation/features/1")[0] == pytest.approx(first, rel=1e-6)


@pytest.mark.parametrize("of", ["output", "input"])
def test_features_alone_are_trained(of):
    teacher, student = mlp(1), Classifier(mlp(0))

    def objective(module, batch):
        inside = [
            m[0](batch[0]) if of == "output" else hidden(m, batch[0]) for m in (module, teacher)
        ]
        task = F.cross_entropy(module(batch[0]), batch[1])
        return 0.1 * task + 2.0 * square(inside[0], inside[1].detach())

    expected = train_by_hand(student.module, loader(), objective)
    layer = "0" if of == "output" else "2"
    term = FeatureTerm(layer, loss=square, weight=2.0, of=of)
    fit(student, Distillation(teacher, None, feature_terms=[term]))
    assert_close(student.module, expected)


def test_each_teacher_runs_once_for_logits_and_features():
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, inputs):
            Counting.calls += 1
            return super().forward(inputs)

    terms = [FeatureTerm("1", loss=HiddenMSE()), FeatureTerm("0", loss=HiddenMSE())]
    for kd in (forward_kl(), None):
        Counting.calls = 0
        teacher = Counting(*mlp(1))
        algorithm = Distillation(teacher, kd, feature_terms=terms)
        fit(Classifier(mlp(0)), algorithm, device_train_microbatch_size=5)
        assert Counting.calls == 4


def test_a_weight_of_zero_leaves_the_students_run_bitwise_as_it_was():
    plain, listened = Classifier(mlp(0, dropout=0.5)), Classifier(mlp(0, dropout=0.5))
    fit(plain)
    term = FeatureTerm("1", loss=HiddenMSE(), weight=lambda state: 0.0)
    algorithm = Distillation(
        mlp(1),
        None,
        org_loss_weight=1.0,
        feature_terms=[term, FeatureTerm("0", loss=CKA(), weight=0)],
    )
    fit(listened, algorithm)
    assert_same(listened, plain)


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_live_for_one_forward_within_the_terms_window():
    teacher, student = mlp(1), Classifier(mlp(0))
    inside = []

    class Telling(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, inputs):
            inside.append((self.module is not student.module, hooks_of(self)))
            return self.module(inputs)

    outer_student = Classifier(nn.Sequential(student.module))
    outer_student.module = Telling(student.module)
    term = FeatureTerm("module.1", loss=HiddenMSE(), start_dur="1ba", end_dur="2ba")
    outside = Spy(Event.AFTER_LOSS, lambda state: hooks_of(state.model))
    algorithm = Distillation(Telling(teacher), forward_kl(), feature_terms=[term])
    trainer = fit(
        outer_student, algorithm, callbacks=outside, max_duration="2ep", eval_dataloader=loader()
    )
    of_student = [hooks for is_teacher, hooks in inside if not is_teacher]
    of_teacher = [hooks for is_teacher, hooks in inside if is_teacher]
    evaluated = 2  # batches at the end of each epoch
    assert of_teacher == [0, 1, 0, 0]
    assert sum(of_student) == 1
    assert len(of_student) == 4 + 2 * evaluated
    assert outside.seen == [0] * 4
    assert len(logged(trainer, "distillation/features/module.1")) == 1
    assert hooks_of(outer_student) == hooks_of(teacher) == 0


def test_nothing_of_a_microbatch_is_kept():
    algorithm = Distillation(mlp(1), None, feature_terms=[FeatureTerm("1", loss=HiddenMSE())])

    def kept(state):
        exchange = algorithm._events._terms[0]._exchange
        return exchange._student._heard or any(x.heard for x in exchange._listeners)

    spy = Spy(Event.BEFORE_BACKWARD, kept)
    fit(Classifier(mlp(0)), algorithm, callbacks=spy)
    assert spy.seen
    assert not any(spy.seen)


def test_several_teachers_weigh_by_their_shares():
    teachers = [Teacher(mlp(1), weight=3.0), Teacher(mlp(2), weight=1.0)]
    student = Classifier(mlp(0))

    def objective(module, batch):
        values = [
            square(hidden(module, batch[0]), hidden(teacher.model, batch[0]).detach())
            for teacher in teachers
        ]
        task = F.cross_entropy(module(batch[0]), batch[1])
        return 0.1 * task + 0.75 * values[0] + 0.25 * values[1]

    expected = train_by_hand(student.module, loader(), objective)
    fit(student, Distillation(teachers, None, feature_terms=[FeatureTerm("1", loss=HiddenMSE())]))
    assert_close(student.module, expected)


def test_a_teacher_in_pieces_gives_whole_features():
    student, teacher = Classifier(mlp(0)), mlp(1)
    whole, pieces = copy.deepcopy(student), copy.deepcopy(student)
    terms = [FeatureTerm("1", loss=HiddenMSE())]
    fit(whole, Distillation(teacher, None, feature_terms=terms))
    fit(pieces, Distillation(Teacher(teacher, microbatch_size=3), None, feature_terms=terms))
    assert_close(pieces, whole)


def test_weights_follow_a_schedule_and_pairs_add_up():
    teacher, student = mlp(1), Classifier(mlp(0))
    batches = list(loader())

    def objective_at(weight):
        def objective(module, batch):
            pairs = [(module[0](batch[0]), teacher[0](batch[0]).detach())]
            pairs.append((hidden(module, batch[0]), hidden(teacher, batch[0]).detach()))
            task = F.cross_entropy(module(batch[0]), batch[1])
            return 0.1 * task + weight * sum(square(*pair) for pair in pairs)

        return objective

    expected = student.module
    for weight, batch in zip((1.0, 0.5), batches, strict=True):
        expected = train_by_hand(expected, [batch], objective_at(weight))
    term = FeatureTerm(
        ["0", "1"], loss=HiddenMSE(), weight=lambda state: 1.0 / (1 + int(state.timestamp.batch))
    )
    trainer = fit(student, Distillation(teacher, None, feature_terms=[term]))
    assert_close(student.module, expected)
    assert logged(trainer, "distillation/feature_weight/0..1") == [1.0, 0.5]


def test_a_callable_reads_model_and_outputs():
    teacher, student = mlp(1), Classifier(mlp(0))

    def objective(module, batch):
        task = F.cross_entropy(module(batch[0]), batch[1])
        return 0.1 * task + square(module(batch[0]), teacher(batch[0]).detach()) + 0 * task

    expected = train_by_hand(student.module, loader(), objective)
    seen = []

    def logits(model, outputs):
        seen.append(type(model))
        return outputs

    fit(student, Distillation(teacher, None, feature_terms=[FeatureTerm(logits, loss=HiddenMSE())]))
    assert_close(student.module, expected)
    assert seen[:2] == [Classifier, nn.Sequential]


def test_pairs_are_said_once(caplog):
    caplog.set_level(logging.INFO, "composer_distill")
    term = FeatureTerm(["0", "1"], ["0", "1"], loss=HiddenMSE())
    fit(Classifier(mlp(0)), Distillation(mlp(1), None, feature_terms=[term]))
    said = [r.message for r in caplog.records if "matches the student" in r.message]
    assert said == [
        "feature term '0..1' matches the student with teacher 0 (Sequential): 0 -> 0, 1 -> 1"
    ]


def test_a_loss_that_relates_samples_says_that_a_batch_is_cut(caplog):
    term = FeatureTerm("1", loss=CKA())
    for size, times in ((10, 0), (5, 1)):
        caplog.clear()
        fit(
            Classifier(mlp(0)),
            Distillation(mlp(1), None, feature_terms=[term]),
            device_train_microbatch_size=size,
        )
        assert sum("relates the samples" in r.message for r in caplog.records) == times


def test_a_teachers_broken_features_stop_the_run_before_the_step():
    teacher, student = mlp(1), Classifier(mlp(0))
    with torch.no_grad():
        teacher[0].weight[0, 0] = float("nan")
    algorithm = Distillation(teacher, None, feature_terms=[FeatureTerm("0", loss=HiddenMSE())])
    trainer = trainer_for(student, algorithm)
    with pytest.raises(ValueError, match=r"teacher 0 \(Sequential\): its features hold NaN"):
        trainer.fit()
    trainer.close()


def test_what_may_not_be_asked_is_refused_at_the_start():
    with pytest.raises(TypeError, match=r"feature_terms\[0\] must be a FeatureTerm, got str"):
        Distillation(mlp(1), None, feature_terms=["layer3"])
    with pytest.raises(TypeError, match="kd_loss_fn must be callable"):
        Distillation(mlp(1), None)
    with pytest.raises(ValueError, match="on_nonfinite='skip'"):
        Distillation(
            mlp(1), None, feature_terms=FeatureTerm("0", loss=HiddenMSE()), on_nonfinite="skip"
        )
    algorithm = Distillation(mlp(1), None, feature_terms=[FeatureTerm("layer", loss=HiddenMSE())])
    with pytest.raises(ValueError, match="the student has no layer 'layer'"):
        trainer_for(Classifier(mlp(0)), algorithm)
    assert LEARNING_RATE


class Deep(nn.Module):
    """A student whose blocks may run under activation checkpointing."""

    def __init__(self, reentrant=None):
        super().__init__()
        self.first, self.second, self.head = mlp(3)[0:2], nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            for layer in (self.second, self.head):
                layer.reset_parameters()
        self.reentrant = reentrant
        self.double()

    def block(self, hidden):
        return torch.tanh(self.second(torch.tanh(self.first(hidden))))

    def forward(self, inputs):
        if self.reentrant is None or not self.training:
            return self.head(self.block(inputs))
        block = checkpoint(self.block, inputs.requires_grad_(), use_reentrant=self.reentrant)
        return self.head(block)


def test_a_layer_that_is_recomputed_in_backward_counts_once():
    term = FeatureTerm("second", loss=HiddenMSE(), weight=2.0)
    trained = []
    for reentrant in (None, False):
        student = Classifier(Deep(reentrant))
        fit(student, Distillation(Deep(), None, feature_terms=[term]))
        trained.append(student)
    assert_same(*trained)


def test_a_layer_without_a_gradient_path_is_an_error():
    term = FeatureTerm("second", loss=HiddenMSE())
    frozen = Deep()
    for layer in (frozen.first, frozen.second):
        layer.requires_grad_(False)
    for student in (Deep(reentrant=True), frozen):
        trainer = trainer_for(Classifier(student), Distillation(Deep(), None, feature_terms=[term]))
        with pytest.raises(ValueError, match="'second' gave has no gradient path"):
            trainer.fit()
        trainer.close()


def test_a_student_compiled_as_a_whole_trains_the_same():
    term = FeatureTerm("second", loss=HiddenMSE(), weight=2.0)
    trained = []
    for config in (None, {"backend": "aot_eager"}):
        student = Classifier(Deep())
        algorithm = Distillation(Deep(), None, feature_terms=[term])
        fit(student, algorithm, compile_config=config)
        trained.append(student)
    assert_close(*trained)


def test_an_overwritten_layer_of_the_teacher_stops_the_run():
    teacher = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4)).double()
    algorithm = Distillation(teacher, None, feature_terms=[FeatureTerm("0", loss=HiddenMSE())])
    trainer = trainer_for(Classifier(mlp(0)), algorithm)
    with pytest.raises(ValueError, match=r"teacher 0 \(Sequential\): the layer '0' .*overwritten"):
        trainer.fit()
    trainer.close()
