"""When distillation acts: exact to the batch, in every unit of time."""

import logging
import re

import pytest
from composer.core import DataSpec, Event, Time
from integration.harness import (
    Classifier,
    Recorder,
    Spy,
    assert_close,
    batches_of,
    fit,
    forward_kl,
    loader,
    mlp,
    steps_of,
    train_by_hand,
    trainer_for,
)
from torch.nn import functional as F

from composer_distill import Distillation, KLDivergence

WEIGHT = "distillation/kd_loss_weight"
PER_EPOCH = 5  # batches of 4 samples, each of 3 tokens


def data():
    return DataSpec(loader(20, 4), get_num_tokens_in_batch=lambda batch: 3 * len(batch[0]))


def active_batches(max_duration, data=data, **window):
    """Return the batches in which the teacher answered, which must be those that are logged."""
    teacher = Recorder(mlp(1))
    trainer = fit(
        Classifier(mlp(0)),
        Distillation(teacher, KLDivergence(), **window),
        train_dataloader=data(),
        max_duration=max_duration,
    )
    assert len(teacher.inputs) == len(steps_of(trainer, WEIGHT))
    return steps_of(trainer, WEIGHT)


WINDOWS = [
    # max_duration, start_dur, end_dur, first batch inside, first batch outside again
    ("4ep", 0.0, 1.0, 0, 20),
    ("4ep", 0.25, 0.75, 5, 15),
    ("4ep", 0.1, 0.3, 2, 6),
    ("4ep", 0.12, 0.31, 3, 7),  # 2.4 and 6.2: the first whole batches not before them
    ("1ep", 0.2, 0.8, 1, 4),
    ("1ep", 0.1, 1.0, 1, 5),
    ("3ep", 1 / 3, 2 / 3, 5, 10),
    ("10ba", 0.1, 0.7, 1, 7),
    ("10ba", 0.3, 0.9, 3, 9),
    ("40sp", 0.5, 1.0, 5, 10),
    ("120tok", 0.1, 0.7, 1, 7),
    ("4ep", "3ba", "7ba", 3, 7),
    ("4ep", "1ep", "3ep", 5, 15),
    ("4ep", "8sp", "20sp", 2, 5),
    ("4ep", "9sp", "21sp", 3, 6),
    ("4ep", "24tok", "60tok", 2, 5),
    ("4ep", "0.25dur", "0.5dur", 5, 10),
    ("4ep", Time.from_batch(3), Time.from_epoch(2), 3, 10),
    ("4ep", "3ba", "2ep", 3, 10),
    ("4ep", "1ep", 0.5, 5, 10),
    ("4ep", 0.0, "6ba", 0, 6),
    ("4ep", "2ba", "1000ba", 2, 20),
    ("4ep", "2ba", "1000ep", 2, 20),
    ("10ba", "1ep", "1000ep", 5, 10),
    ("4ep", "0ba", "0sec", 0, 0),
    ("4ep", "0sec", "3ba", 0, 3),
]


@pytest.mark.parametrize(("max_duration", "start", "end", "first", "stop"), WINDOWS)
def test_a_window_is_exact_to_the_batch(max_duration, start, end, first, stop):
    assert active_batches(max_duration, start_dur=start, end_dur=end) == list(range(first, stop))


def test_a_fraction_of_epochs_counts_a_last_batch_that_is_short():
    # 22 samples: five batches of 4 and one of 2 an epoch
    term = Distillation(mlp(1), KLDivergence(), start_dur=0.25, end_dur=0.75)
    trainer = fit(
        Classifier(mlp(0)),
        term,
        train_dataloader=loader(22, 4),
        device_train_microbatch_size=2,
        max_duration="2ep",
    )
    assert steps_of(trainer, WEIGHT) == list(range(3, 9))


def test_a_fraction_counts_the_batches_of_a_subset():
    teacher = mlp(1)
    trainer = fit(
        Classifier(mlp(0)),
        Distillation(teacher, KLDivergence(), start_dur=0.5),
        train_dataloader=data(),
        train_subset_num_batches=2,
        max_duration="4ep",
    )
    assert steps_of(trainer, WEIGHT) == [4, 5, 6, 7]


def test_a_window_in_batches_needs_no_length():
    def endless():
        while True:
            yield from loader(8, 4)

    trainer = fit(
        Classifier(mlp(0)),
        Distillation(mlp(1), KLDivergence(), start_dur=0.5),
        train_dataloader=endless(),
        device_train_microbatch_size=4,
        max_duration="6ba",
    )
    assert steps_of(trainer, WEIGHT) == [3, 4, 5]


def test_outside_the_window_the_students_own_loss_counts_fully():
    teacher, student = mlp(1), Classifier(mlp(0))
    index = iter(range(6))

    def objective(module, batch):
        logits = module(batch[0])
        task = F.cross_entropy(logits, batch[1])
        if next(index) not in (2, 3):
            return task
        return 0.3 * task + 0.7 * forward_kl()(logits, teacher(batch[0]).detach())

    expected = train_by_hand(student.module, batches_of(loader(), epochs=3), objective)
    term = Distillation(teacher, forward_kl(), 0.7, 0.3, start_dur="2ba", end_dur="4ba")
    fit(student, term, max_duration="3ep", device_train_microbatch_size=5)
    assert_close(student.module, expected)


def test_outside_the_window_the_loss_is_the_students_own_tensor():
    losses = []

    def loss_fn(logits, targets):
        losses.append(F.cross_entropy(logits, targets))
        return losses[-1]

    spy = Spy(Event.BEFORE_BACKWARD, lambda state: state.loss)
    term = Distillation(mlp(1), KLDivergence(), end_dur="1ba")
    fit(Classifier(mlp(0), loss_fn), term, callbacks=spy, max_duration="2ep")
    same = [theirs is ours for theirs, ours in zip(spy.seen, losses, strict=True)]
    assert same == [False, True, True, True]


def turns(caplog):
    """Return how and at which batch the log says that the window turned."""
    lines = [text for text in caplog.messages if re.search("begins to act|no longer acts", text)]
    return [f"{re.search('begins|no longer', line)[0]} {line.split()[-1]}" for line in lines]


def test_the_window_says_when_it_opens_and_closes(caplog):
    term = Distillation(mlp(1), KLDivergence(), start_dur="1ba", end_dur="3ba")
    with caplog.at_level(logging.INFO, logger="composer_distill"):
        fit(Classifier(mlp(0)), term, max_duration="3ep", device_train_microbatch_size=5)
    assert turns(caplog) == ["begins 1", "no longer 3"]


def test_a_trainer_without_max_duration_takes_it_from_fit():
    trainer = trainer_for(
        Classifier(mlp(0)), Distillation(mlp(1), KLDivergence(), end_dur=0.5), max_duration=None
    )
    trainer.fit(duration="4ba")
    trainer.close()
    assert steps_of(trainer, WEIGHT) == [0, 1]


def test_a_closed_window_in_batches_stays_closed_when_fit_goes_on():
    trainer = trainer_for(
        Classifier(mlp(0)),
        Distillation(mlp(1), KLDivergence(), start_dur="1ba", end_dur="3ba"),
        max_duration="4ba",
    )
    trainer.fit()
    trainer.fit(duration="4ba")
    trainer.close()
    assert int(trainer.state.timestamp.batch) == 8
    assert steps_of(trainer, WEIGHT) == [1, 2]


def test_a_fraction_means_the_whole_of_training_when_fit_goes_on(caplog):
    # Three quarters of 4 batches are 3, and of the 8 that it becomes 6: the log says so.
    term = Distillation(mlp(1), KLDivergence(), end_dur=0.75)
    trainer = trainer_for(Classifier(mlp(0)), term, max_duration="4ba")
    with caplog.at_level(logging.INFO, logger="composer_distill"):
        trainer.fit()
        trainer.fit(duration="4ba")
    trainer.close()
    assert steps_of(trainer, WEIGHT) == [0, 1, 2, 4, 5]
    assert turns(caplog) == ["begins 0", "no longer 3", "begins 4", "no longer 6"]


def test_a_fraction_of_a_longer_fit_counts_the_whole_of_training():
    trainer = trainer_for(
        Classifier(mlp(0)),
        Distillation(mlp(1), KLDivergence(), start_dur=0.75),
        max_duration="4ba",
    )
    trainer.fit()
    trainer.fit(duration="4ba")
    trainer.close()
    assert steps_of(trainer, WEIGHT) == [3, 6, 7]


@pytest.mark.parametrize("seconds", ["0sec", "100000sec"])
def test_a_window_in_seconds_reads_the_wall_clock_of_the_run(seconds):
    active = active_batches("2ep", start_dur=seconds, end_dur="200000sec")
    assert active == (list(range(10)) if seconds == "0sec" else [])


def test_the_window_is_asked_alike_in_every_microbatch():
    trainer = fit(
        Classifier(mlp(0)),
        Distillation(mlp(1), KLDivergence(), start_dur="6sp", end_dur="14sp"),
        train_dataloader=data(),
        device_train_microbatch_size=1,
        max_duration="1ep",
    )
    assert steps_of(trainer, WEIGHT) == [2, 3]


def test_outside_the_window_nothing_is_called_once_that_is_known(monkeypatch):
    called = set()
    apply = Distillation.apply

    def watched(self, event, state, logger):
        called.add(int(state.timestamp.batch) - (event is Event.BATCH_END))
        apply(self, event, state, logger)

    monkeypatch.setattr(Distillation, "apply", watched)
    active_batches("10ba", start_dur="4ba", end_dur="6ba")
    # The first batch, those inside, and the one that finds the window closed
    assert called == {0, 4, 5, 6}
