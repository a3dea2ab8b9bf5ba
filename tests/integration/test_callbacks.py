"""Composer's callbacks beside distillation: they work, and see what they expect."""

import math

import pytest
import torch
from composer import Evaluator
from composer.callbacks import (
    EarlyStopper,
    FreeOutputs,
    NaNMonitor,
    OptimizerMonitor,
    SpeedMonitor,
)
from composer.core import Event
from composer.metrics import CrossEntropy
from integration.harness import (
    N_CLASSES,
    Classifier,
    Spy,
    assert_same,
    entries_of,
    fit,
    forward_kl,
    loader,
    logged,
    mlp,
)
from torchmetrics.classification import MulticlassAccuracy

from composer_distill import Distillation, KLDivergence


def distil(**kwargs):
    return Distillation(mlp(1), KLDivergence(2.0), **kwargs)


def trained(callbacks=(), algorithms=None, **kwargs):
    student = Classifier(mlp(0))
    algorithms = distil() if algorithms is None else algorithms
    return fit(student, algorithms, callbacks=callbacks, max_duration="2ep", **kwargs)


@pytest.mark.parametrize(
    "make",
    [
        FreeOutputs,
        NaNMonitor,
        lambda: OptimizerMonitor(batch_log_interval=1),
        lambda: SpeedMonitor(window_size=2),
    ],
    ids=["FreeOutputs", "NaNMonitor", "OptimizerMonitor", "SpeedMonitor"],
)
def test_a_callback_leaves_the_distilled_run_bitwise_as_it_was(make):
    plain, watched = trained(), trained(make())
    assert_same(watched.state.model, plain.state.model)
    assert logged(watched, "loss/train/kd") == logged(plain, "loss/train/kd")


def test_free_outputs_frees_the_outputs_after_the_term_has_read_them():
    outputs = Spy(Event.BEFORE_BACKWARD, lambda state: state.outputs.numel())
    trainer = trained([FreeOutputs(), outputs])
    assert outputs.seen == [0] * 4
    assert len(logged(trainer, "loss/train/kd")) == 4


def test_nan_monitor_sees_a_distillation_loss_that_is_no_number():
    def broken(student, teacher):
        return (student - teacher).square().mean() * math.nan

    with pytest.raises(RuntimeError, match="NaN"):
        trained(NaNMonitor(), Distillation(mlp(1), broken))


@pytest.mark.parametrize(
    "loss_fn",
    [
        lambda x, y: {"ce": torch.nn.functional.cross_entropy(x, y)},
        lambda x, y: (torch.nn.functional.cross_entropy(x, y),),
    ],
    ids=["dict", "tuple"],
)
def test_nan_monitor_reads_every_kind_of_loss(loss_fn):
    fit(Classifier(mlp(0), loss_fn), distil(), callbacks=NaNMonitor())


def test_optimizer_monitor_sees_the_gradients_of_the_whole_loss():
    norms = Spy(
        Event.AFTER_TRAIN_BATCH,
        lambda state: math.sqrt(sum(p.grad.square().sum() for p in state.model.parameters())),
    )
    trainer = trained([OptimizerMonitor(batch_log_interval=1), norms])
    assert logged(trainer, "l2_norm/grad/global") == pytest.approx(norms.seen, rel=1e-6)
    assert not any("teacher" in name for name in entries_of(trainer) if "l2_norm" in name)


def test_speed_monitor_counts_the_students_samples_alone():
    trainer = trained(SpeedMonitor(window_size=1))
    plain = trained(SpeedMonitor(window_size=1), ())
    names = [name for name in entries_of(plain) if name.startswith("throughput/")]
    assert names
    assert set(names) <= set(entries_of(trainer))
    assert int(trainer.state.timestamp.sample) == int(plain.state.timestamp.sample) == 40


def evaluator():
    return Evaluator(
        label="held out", dataloader=loader(8, 4, seed=3), metric_names=["MulticlassAccuracy"]
    )


class Measured(Classifier):
    def get_metrics(self, is_train):
        return {"MulticlassAccuracy": MulticlassAccuracy(N_CLASSES), "CrossEntropy": CrossEntropy()}

    def eval_forward(self, batch, outputs=None):
        return self.forward(batch) if outputs is None else outputs

    def update_metric(self, batch, outputs, metric):
        metric.update(outputs, batch[1])


def test_early_stopper_reads_the_students_own_metric():
    # The comparison never sees an improvement: the run ends when the patience of 1 epoch does.
    stopper = EarlyStopper(
        "MulticlassAccuracy", "held out", comp=lambda current, best: False, patience="1ep"
    )
    trainer = fit(
        Measured(mlp(0)),
        distil(),
        callbacks=stopper,
        eval_dataloader=evaluator(),
        eval_interval="1ep",
        max_duration="6ep",
    )
    assert 1 < int(trainer.state.timestamp.epoch) < 6
    assert len(logged(trainer, "loss/train/kd")) == int(trainer.state.timestamp.batch)


def test_train_metrics_are_the_students_own():
    batches = Spy(Event.BEFORE_LOSS, lambda state: (state.outputs.detach(), state.batch[1]))
    trainer = fit(Measured(mlp(0)), distil(), callbacks=batches, device_train_microbatch_size=10)
    metric = MulticlassAccuracy(N_CLASSES)
    expected = [float(metric(outputs, targets)) for outputs, targets in batches.seen]
    assert logged(trainer, "metrics/train/MulticlassAccuracy")[: len(expected)] == pytest.approx(
        expected
    )


def test_the_distance_may_be_any_callable_object():
    student = Classifier(mlp(0))
    fit(student, Distillation(mlp(1), forward_kl(2.0)), callbacks=[FreeOutputs(), NaNMonitor()])
