import pytest
import torch
from composer.core import Callback

from composer_distill.demo.data import DigitSet, load_split
from composer_distill.demo.experiment import (
    ALONE,
    DISTILLED,
    FEW_ALONE,
    FEW_DISTILLED,
    count_steps,
    make_arms,
    run_arm,
    run_experiment,
    train_teacher,
)
from composer_distill.demo.models import build_teacher
from composer_distill.demo.scores import answer
from composer_distill.demo.settings import Settings
from composer_distill.weights.checkpoint import load_weights

TINY = Settings(seeds=1, teacher_steps=6, steps=20, few_steps=4, points=2)


class Recorder(Callback):
    """Keeps the weights at the start and the end, and every batch."""

    def __init__(self):
        self.batches = []

    def fit_start(self, state, logger):
        self.before = _weights(state.model)

    def batch_start(self, state, logger):
        self.batches.append(state.batch)

    def fit_end(self, state, logger):
        self.after = _weights(state.model)


def _weights(model):
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    checkpoint = tmp_path_factory.mktemp("teacher") / "teacher.pt"
    train_set, test_set = load_split(TINY.train_images)
    teacher, _ = train_teacher(TINY, train_set, checkpoint, [])
    return checkpoint, train_set, test_set, answer(teacher, test_set)


def record(trained, name, seed=1, data=None):
    checkpoint, train_set, test_set, logits = trained
    recorder = Recorder()
    arms = {arm.name: arm for arm in make_arms(TINY, data or train_set, checkpoint, seed)}
    run = run_arm(TINY, arms[name], seed, test_set, logits, [recorder])
    return recorder, run


def same_batches(one, other):
    pairs = zip(one.batches, other.batches, strict=True)
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in pairs)


def test_the_checkpoint_is_the_teacher(trained):
    checkpoint, _, test_set, logits = trained
    loaded = build_teacher(seed=5)
    load_weights(loaded, checkpoint)
    assert torch.equal(answer(loaded, test_set), logits)


def test_a_pair_starts_equal_and_sees_the_same_batches(trained):
    alone, _ = record(trained, ALONE)
    distilled, _ = record(trained, DISTILLED)
    assert len(alone.batches) == TINY.steps
    assert torch.equal(alone.before, distilled.before)
    assert same_batches(alone, distilled)
    assert not torch.equal(alone.after, distilled.after)


def test_another_seed_is_another_student_on_other_batches(trained):
    one, _ = record(trained, ALONE, seed=1)
    other, _ = record(trained, ALONE, seed=2)
    assert not torch.equal(one.before, other.before)
    assert not same_batches(one, other)


def test_the_same_seed_is_the_same_run(trained):
    one, first = record(trained, DISTILLED)
    again, second = record(trained, DISTILLED)
    assert torch.equal(one.after, again.after)
    assert first.curve == second.curve


def test_few_labels_pair_starts_equal(trained):
    alone, run = record(trained, FEW_ALONE)
    distilled, _ = record(trained, FEW_DISTILLED)
    assert torch.equal(alone.before, distilled.before)
    assert run.labels == 50
    assert {len(labels) for _, labels in alone.batches} == {50}


def test_the_student_without_labels_never_reads_one(trained):
    _, train_set, *_ = trained
    recorder, run = record(trained, FEW_DISTILLED)
    assert run.labels == 0
    assert all(labels.unique().tolist() == [0] for _, labels in recorder.batches)
    # Were a label read anywhere on the way, wrong ones would lead elsewhere
    wrong = DigitSet(train_set.images, (train_set.labels + 1) % 10)
    misled, _ = record(trained, FEW_DISTILLED, data=wrong)
    assert torch.equal(recorder.after, misled.after)


def test_a_curve_ends_in_the_final_scores(trained):
    _, run = record(trained, ALONE)
    assert [point.step for point in run.curve] == [10, 20]
    assert run.curve[-1].scores == run.scores


def test_the_whole_experiment_trains_every_arm_of_every_seed(tmp_path, capsys):
    settings = Settings(seeds=2, teacher_steps=2, steps=2, few_steps=2, points=1)
    result = run_experiment(settings, tmp_path / "teacher.pt")
    arms = [ALONE, DISTILLED, FEW_ALONE, FEW_DISTILLED]
    expected = [("teacher", 0), *((arm, seed) for seed in (1, 2) for arm in arms)]
    assert [(run.arm, run.seed) for run in result.runs] == expected
    assert result.test_images == 797
    assert count_steps(settings) == 2 * len(expected)
    assert f"/{count_steps(settings)}" in capsys.readouterr().err
