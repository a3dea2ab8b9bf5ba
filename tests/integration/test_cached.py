"""Training from cached answers, in real Trainers."""

import logging
import threading
from typing import Any

import pytest
import torch
from composer.core import Algorithm, Callback, DataSpec, Event
from integration.harness import (
    Classifier,
    Recorder,
    assert_same,
    dataset,
    fit,
    loader,
    logged,
    mlp,
    trainer_for,
    weights,
)
from integration.workers import caching
from integration.workers.caching import Numbered, Telling, met, stream_of
from integration.workers.common import Crash
from streaming import StreamingDataLoader
from torch.utils.data import DataLoader, Dataset, Subset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher
from composer_distill.caching.answers import Answers

FLOAT32: Any = {"dtype": torch.float32}


def test_a_cache_trains_to_the_weights_of_the_live_teacher_bit_for_bit(tmp_path):
    found, live = caching.cached_answers(tmp_path), {}
    assert found["samples"] == (40, 40)
    for name, (cached, live) in found["runs"].items():
        torch.testing.assert_close(cached, live, rtol=0, atol=0, msg=name)
    untrained = weights(Classifier(mlp(0, **FLOAT32)))
    assert not torch.equal(live["module.0.weight"], untrained["module.0.weight"])


# Labels hidden in the answers: the telling pieces stand beside the scenarios of two processes


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("numbers") / "answers"
    cache_teacher(Telling(), DataLoader(Numbered(), batch_size=8), folder, device="cpu")
    return folder


@pytest.mark.filterwarnings("ignore:Cannot split tensor of length")
@pytest.mark.parametrize(
    "options",
    [{}, {"shuffle": True}, {"shuffle": True, "drop_last": True}, {"batch_size": 3}],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 4])
def test_each_row_meets_its_own_answer(numbers, options, size):
    data = DataLoader(Numbered(), **{"batch_size": 8, **options})
    seen, _ = met(numbers, data, device_train_microbatch_size=size, max_duration="2ep")
    assert len(seen) == 2 * (32 if "drop_last" in options else 37)
    assert ("shuffle" in options) == (seen[:8] != list(range(8)))


def test_each_row_of_a_subset_and_of_workers_meets_its_own_answer(numbers):
    part = Subset(Numbered(), [30, 2, 17, 5])
    assert met(numbers, DataLoader(part, batch_size=2, num_workers=1))[0] == [30, 2, 17, 5]


def test_each_row_meets_its_own_answer_after_resuming_in_the_middle_of_an_epoch(numbers, tmp_path):
    def run(*callbacks, **kwargs):
        data = DataLoader(Numbered(), batch_size=8, shuffle=True)
        return met(numbers, data, callbacks=callbacks, max_duration="2ep", **kwargs)[0]

    straight = run()
    saves = {"save_folder": str(tmp_path), "save_interval": "1ba"}
    with pytest.raises(KeyboardInterrupt):
        run(Crash(7), **saves)
    resumed = run(load_path=str(tmp_path / "ep1-ba7-rank0.pt"))
    assert resumed == straight[37 + 2 * 8 :]


@pytest.fixture
def stream(tmp_path):
    return stream_of(tmp_path / "mds")


def test_each_row_of_a_stream_with_its_own_shuffle_meets_its_own_answer(numbers, stream):
    seen, _ = met(numbers, StreamingDataLoader(stream, batch_size=4), max_duration="2ep")
    assert sorted(seen) == sorted([*range(37)] * 2)
    assert seen[:37] != seen[37:] != list(range(37))


def test_a_cache_is_written_from_a_stream(numbers, stream, tmp_path):
    data = DataSpec(StreamingDataLoader(stream, batch_size=4))
    assert cache_teacher(Telling(), data, tmp_path / "cache", device="cpu").samples == 37
    assert len(met(tmp_path / "cache", DataLoader(Numbered(), batch_size=4))[0]) == 37


# What is not there


def other_inputs(n=6):
    return loader(n, 3, seed=9, **FLOAT32)


@pytest.fixture
def answers(tmp_path):
    teacher = mlp(1, **FLOAT32)
    cache_teacher(teacher, loader(20, **FLOAT32), tmp_path / "answers", device="cpu")
    return tmp_path / "answers", teacher


def run(teacher, data, **kwargs):
    term = Distillation(teacher, KLDivergence(2.0))
    return fit(Classifier(mlp(0, **FLOAT32)), term, train_dataloader=data, **kwargs)


def test_samples_that_are_not_there_are_counted(answers):
    data = DataLoader(
        torch.utils.data.ConcatDataset(
            [Subset(dataset(20, **FLOAT32), range(4)), other_inputs().dataset]
        ),
        batch_size=10,
    )
    with pytest.raises(ValueError, match="6 of the 10 samples of this batch are not in the cache"):
        run(CachedTeacher(answers[0]), data)


def test_a_live_teacher_answers_what_is_not_there(answers):
    folder, teacher = answers
    spy = Recorder(teacher)
    cached = CachedTeacher(folder, teacher)
    assert cached.teacher is not None
    cached.teacher.model = spy
    assert_same(
        run(cached, other_inputs()).state.model, run(mlp(1, **FLOAT32), other_inputs()).state.model
    )
    assert len(spy.inputs) == 2
    run(cached, loader(20, **FLOAT32))
    assert len(spy.inputs) == 2


def test_a_live_teacher_must_be_the_one_that_wrote(answers):
    with pytest.raises(ValueError, match="holds the answers of Sequential, .*but teacher is"):
        CachedTeacher(answers[0], mlp(2, **FLOAT32))


def test_cached_and_live_teachers_answer_together(answers):
    folder, teacher = answers
    live = run([teacher, mlp(2, **FLOAT32)], loader(20, **FLOAT32))
    both = run([CachedTeacher(folder), mlp(2, **FLOAT32)], loader(20, **FLOAT32))
    assert_same(both.state.model, live.state.model)
    assert logged(both, "distillation/kd_loss/teacher_0") == logged(
        live, "distillation/kd_loss/teacher_0"
    )


class Moved(Algorithm):
    """Changes the batch when it has been seen by those who look ahead, or before."""

    def __init__(self, event):
        self.event = event

    def match(self, event, state):
        return event == self.event

    def apply(self, event, state, logger):
        state.batch = (state.batch[0].clone(), state.batch[1])


@pytest.mark.parametrize("event", [None, Event.BATCH_START, Event.BEFORE_FORWARD])
def test_answers_are_read_in_a_thread_while_the_student_computes(event, monkeypatch, tmp_path):
    folder, teacher = tmp_path / "answers", mlp(1, **FLOAT32)
    # Two rows at a time, as a live teacher here: some processors round four of them otherwise
    cache_teacher(teacher, loader(20, 2, **FLOAT32), folder, device="cpu")
    found, asked = Answers.find, []

    def spy(self, *args, **kwargs):
        asked.append(threading.current_thread().name)
        return found(self, *args, **kwargs)

    monkeypatch.setattr(Answers, "find", spy)
    data, options = loader(20, **FLOAT32), {"device_train_microbatch_size": 2}
    term = Distillation(CachedTeacher(folder), KLDivergence(2.0))
    others = [] if event is None else [Moved(event)]
    ours = fit(Classifier(mlp(0, **FLOAT32)), [term, *others], train_dataloader=data, **options)
    assert_same(ours.state.model, run(teacher, data, **options).state.model)
    ahead = [name for name in asked if name.startswith("answers")]
    assert len(ahead) == 10
    assert len(asked) == (20 if event == Event.BEFORE_FORWARD else 10)


def test_cached_answers_have_a_window_of_their_own(answers):
    cached = CachedTeacher(answers[0], start_dur="1ba", end_dur="3ba")
    trainer = run(cached, loader(20, **FLOAT32), max_duration="4ba")
    assert len(logged(trainer, "loss/train/kd")) == 2
    live = Teacher(answers[1], start_dur="1ba", end_dur="3ba")
    other = run(live, loader(20, **FLOAT32), max_duration="4ba")
    assert_same(trainer.state.model, other.state.model)
    with pytest.raises(ValueError, match="end_dur"):
        CachedTeacher(answers[0], start_dur=0.5, end_dur=0.1)


def test_a_run_that_is_resumed_with_another_cache_is_refused(answers, tmp_path):
    folder, teacher = answers
    saves = {"save_folder": str(tmp_path / "run"), "save_interval": "1ep"}
    run(CachedTeacher(folder), loader(20, **FLOAT32), **saves)
    cache_teacher(teacher, loader(30, **FLOAT32), tmp_path / "more", device="cpu")
    for other, message in ((tmp_path / "more", "differs"), (folder, None)):
        student = Classifier(mlp(0, **FLOAT32))
        term = Distillation(CachedTeacher(other), KLDivergence(2.0))
        saved = str(tmp_path / "run" / "ep1-ba2-rank0.pt")
        options: Any = {"max_duration": "2ep", "load_path": saved}
        data = loader(20, **FLOAT32)
        if message:
            with pytest.raises(ValueError, match=message):
                trainer_for(student, term, train_dataloader=data, **options)
        else:
            trainer_for(student, term, train_dataloader=data, **options).close()


def test_the_teacher_runs_as_in_training(tmp_path):
    teacher = Recorder(mlp(1, dropout=0.5, **FLOAT32)).train()
    options = Teacher(teacher, microbatch_size=4, input_fn=lambda batch: batch[0] * 2)
    cache_teacher(options, loader(10, **FLOAT32), tmp_path / "answers", device="cpu")
    assert [len(batch) for batch in teacher.inputs] == [4, 4, 2]
    assert not any(teacher.modes)
    assert not any(teacher.grad_modes)
    torch.testing.assert_close(teacher.inputs[0], dataset(10, **FLOAT32).tensors[0][:4] * 2)


def test_a_cut_teacher_reads_its_batches_whole(tmp_path):
    teacher = Teacher(mlp(1, **FLOAT32), microbatch_size=4)
    with pytest.raises(ValueError, match="microbatch_size=4 can't be used with sharded=True"):
        cache_teacher(teacher, loader(**FLOAT32), tmp_path / "a", device="cpu", sharded=True)


def test_answers_that_are_not_finite_are_not_kept(tmp_path):
    teacher: Any = mlp(1, **FLOAT32)
    with torch.no_grad():
        teacher[-1].bias[0] = float("nan")
    with pytest.raises(ValueError, match="its answers hold NaN or infinity"):
        cache_teacher(teacher, loader(10, **FLOAT32), tmp_path / "answers", device="cpu")


def test_a_second_writing_asks_the_teacher_nothing(answers, tmp_path, caplog):
    folder, teacher = answers
    spy = Recorder(teacher)
    options = Teacher(spy)
    options.identity = Teacher(teacher).identity
    with caplog.at_level(logging.WARNING):
        manifest = cache_teacher(options, loader(20, **FLOAT32), folder, device="cpu")
    assert manifest.samples == 20
    assert spy.inputs == []


# Views


class Views(Dataset):
    """Samples with an augmentation that is a function of sample and view."""

    def __init__(self, seeded=True):
        self.view, self.seeded = 0, seeded
        self.inputs, self.targets = dataset(12, **FLOAT32).tensors

    def set_view(self, view):
        self.view = view

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        generator = torch.Generator()
        if self.seeded:
            generator.manual_seed(1000 * index + self.view)
        else:
            generator.seed()
        noise = torch.randn(self.inputs.shape[1], generator=generator)
        return self.inputs[index] + noise, self.targets[index]


class NextView(Callback):
    """Shows the next view in each epoch."""

    def fit_start(self, state, logger):
        self.epoch_start(state, logger)

    def epoch_start(self, state, logger):
        data: Any = state.dataloader
        data.dataset.set_view(int(state.timestamp.epoch) % 2)


def test_each_view_meets_its_own_answer(tmp_path):
    teacher = Teacher(mlp(1, **FLOAT32), microbatch_size=1)
    data = DataLoader(Views(), batch_size=4)
    manifest = cache_teacher(teacher, data, tmp_path / "answers", views=2, device="cpu")
    assert manifest.samples == 24
    runs = [
        run(
            one,
            DataLoader(Views(), batch_size=4, shuffle=True),
            callbacks=[NextView()],
            max_duration="4ep",
        )
        for one in (teacher, CachedTeacher(tmp_path / "answers"))
    ]
    assert_same(runs[0].state.model, runs[1].state.model)


def test_a_run_resumed_within_an_epoch_goes_on_with_its_view(tmp_path):
    data = DataLoader(Views(), batch_size=4)
    cache_teacher(mlp(1, **FLOAT32), data, tmp_path / "answers", views=2, device="cpu")

    def trained(**kwargs):
        return run(
            CachedTeacher(tmp_path / "answers"),
            DataLoader(Views(), batch_size=4),
            callbacks=[NextView()],
            max_duration="2ep",
            **kwargs,
        )

    straight = trained(save_folder=str(tmp_path / "saved"), save_interval="1ba")
    resumed = trained(load_path=str(tmp_path / "saved" / "ep1-ba5-rank0.pt"))
    assert_same(resumed.state.model, straight.state.model)


@pytest.mark.parametrize("views", [0, -1, 2.0, True])
def test_views_are_counted(views, tmp_path):
    data = DataLoader(Views(), batch_size=4)
    with pytest.raises(ValueError, match="views must be an integer of at least 1, got"):
        cache_teacher(mlp(1, **FLOAT32), data, tmp_path / "answers", views=views, device="cpu")
    assert not (tmp_path / "answers").exists()


def test_a_precision_that_composer_does_not_know_is_named(tmp_path):
    message = "precision must be 'fp32', 'amp_bf16' or 'amp_fp16', got 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        cache_teacher(mlp(1, **FLOAT32), loader(), tmp_path, precision="bfloat16", device="cpu")


def test_an_augmentation_that_draws_anew_is_refused(tmp_path):
    data = DataLoader(Views(seeded=False), batch_size=4)
    with pytest.raises(ValueError, match="its augmentation is no function of sample and view"):
        cache_teacher(mlp(1, **FLOAT32), data, tmp_path / "answers", views=2, device="cpu")
    with pytest.raises(ValueError, match=r"one that has set_view\(view\) to say so"):
        cache_teacher(mlp(1, **FLOAT32), loader(**FLOAT32), tmp_path / "b", views=2, device="cpu")
