"""Training from cached answers, in real Trainers."""

import logging
from typing import Any

import pytest
import torch
from composer.core import Callback, DataSpec
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
from integration.workers.common import Crash
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from composer_distill import CachedTeacher, Distillation, KLDivergence, Teacher, cache_teacher

FLOAT32: Any = {"dtype": torch.float32}


def test_a_cache_trains_to_the_weights_of_the_live_teacher_bit_for_bit(tmp_path):
    found, live = caching.cached_answers(tmp_path), {}
    assert found["samples"] == (40, 40)
    for name, (cached, live) in found["runs"].items():
        torch.testing.assert_close(cached, live, rtol=0, atol=0, msg=name)
    untrained = weights(Classifier(mlp(0, **FLOAT32)))
    assert not torch.equal(live["module.0.weight"], untrained["module.0.weight"])


# Labels hidden in the answers: sample i is known by its label, and so is its answer. The loss of
# this pair is 0 only where each row met its own.


class Numbered(Dataset):
    """Samples whose label is their number, and which the student answers with that number."""

    def __len__(self):
        return 37

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, generator=generator), torch.tensor(index)


class Telling(nn.Module):
    """Answers a sample with the number that its first value hides."""

    def __init__(self):
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(()))
        table = torch.stack([Numbered()[i][0] for i in range(len(Numbered()))])
        self.register_buffer("table", table)

    def forward(self, inputs):
        number = (inputs[:, None] == self.table).all(-1).float().argmax(-1)
        return torch.stack([number, -number], -1) + self.zero


class Rows:
    """A loss that keeps each row's pair, and whose value is their distance."""

    def __init__(self):
        self.pairs = []

    def __call__(self, student, teacher):
        self.pairs += zip(student[:, 0].tolist(), teacher[:, 0].tolist(), strict=True)
        return (student - teacher).abs().mean()


def own_loss(outputs, targets):
    assert torch.equal(outputs[:, 0].detach(), targets.float())
    return outputs.sum() * 0.0


def met(folder, data, **kwargs):
    """Return the pairs of numbers that met in a run."""
    rows = Rows()
    kwargs.setdefault("device_train_microbatch_size", 1)
    student = Classifier(Telling(), own_loss)
    term = Distillation(CachedTeacher(folder), rows, telemetry=False)
    trainer = fit(student, term, train_dataloader=data, lr=0.0, **kwargs)
    assert all(own == other for own, other in rows.pairs)
    return [int(own) for own, _ in rows.pairs], trainer


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
    with MDSWriter(
        out=str(tmp_path / "mds"), columns={"x": "ndarray:float32:3", "y": "int"}
    ) as out:
        for inputs, number in map(Numbered().__getitem__, range(37)):
            out.write({"x": inputs.numpy(), "y": int(number)})

    class Stream(StreamingDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            return torch.from_numpy(sample["x"].copy()), torch.tensor(sample["y"])

    return Stream(local=str(tmp_path / "mds"), shuffle=True, batch_size=4, num_canonical_nodes=1)


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


def test_an_augmentation_that_draws_anew_is_refused(tmp_path):
    data = DataLoader(Views(seeded=False), batch_size=4)
    with pytest.raises(ValueError, match="its augmentation is no function of sample and view"):
        cache_teacher(mlp(1, **FLOAT32), data, tmp_path / "answers", views=2, device="cpu")
    with pytest.raises(ValueError, match=r"one that has set_view\(view\) to say so"):
        cache_teacher(mlp(1, **FLOAT32), loader(**FLOAT32), tmp_path / "b", views=2, device="cpu")
