"""Teachers that follow a student which FSDP2 cuts: the mean and the snapshot of a loop by hand."""

import copy
import shutil
from types import SimpleNamespace

import pytest
import torch
from composer.utils import FSDPConfig
from integration.harness import Classifier, batches_of, loader, mlp
from integration.test_processes import launch, measured
from integration.workers.followers import BATCHES, DECAY, EVERY, LR, STOP, WARMUP, uneven
from torch import nn
from torch.nn import functional as F

from composer_distill import EMATeacher
from composer_distill.teachers.ema import MovingAverage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("followers")


@pytest.fixture(scope="module")
def two(folder):
    return launch("followers.py", folder)


@pytest.fixture(scope="module")
def one(two, folder, tmp_path_factory):
    """Run in one process what follows the two, whose checkpoints it reads."""
    two("resumed_from_one_file")
    other = tmp_path_factory.mktemp("alone") / "followers"  # what the two found stays as it is
    return launch("followers.py", shutil.copytree(folder, other), processes=1)


def kept_after(updates):
    return min(DECAY, (1 + updates) / (WARMUP + updates))


def loop(lr):
    """Train by hand; return the student, its mean and its snapshot after each batch."""
    student = mlp(0, dtype=torch.float32)
    mean, snapshot, updates, seen = copy.deepcopy(student), None, 0, []
    for step, (inputs, targets) in enumerate(batches_of(loader(40, 10, dtype=torch.float32), 2)):
        logits = student(inputs)
        teachers = [mean] if snapshot is None else [mean, snapshot]
        answer = torch.stack([teacher(inputs).detach() for teacher in teachers]).mean(0)
        kl = F.kl_div(
            logits.log_softmax(-1), answer.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        loss = 0.5 * F.cross_entropy(logits, targets) + 0.5 * kl
        gradients = torch.autograd.grad(loss, list(student.parameters()))
        with torch.no_grad():
            for own, gradient in zip(student.parameters(), gradients, strict=True):
                own.sub_(lr * gradient)
            if (step + 1) % EVERY == 0:
                kept, updates = kept_after(updates), updates + 1
                for old, new in zip(mean.parameters(), student.parameters(), strict=True):
                    old.copy_(kept * old + (1 - kept) * new)
        if step + 1 == STOP:
            snapshot = copy.deepcopy(student)
        seen.append([dict(copy.deepcopy(model).named_parameters()) for model in (student, mean)])
        seen[-1].append(dict((snapshot or mean).named_parameters()))
    return seen


def assert_is_the_loop(found, processes):
    lr = LR * processes  # over gloo FSDP2 adds gradients up where over NCCL it takes their mean
    for step, (ours, by_hand) in enumerate(zip(found["seen"], loop(lr), strict=True)):
        for who, (our, theirs) in enumerate(zip(ours, by_hand, strict=True)):
            if who == 2 and step + 1 < STOP:
                continue  # there is no snapshot yet
            for name in theirs:
                torch.testing.assert_close(our[name], theirs[name].data, rtol=1e-5, atol=1e-6)


CUT = ["by_its_mean", "in_microbatches", "after_an_evaluation", "with_recomputation"]


@pytest.mark.parametrize("scenario", CUT)
def test_two_processes_train_by_the_mean_and_the_snapshot_of_a_loop(two, scenario):
    for rank in (0, 1):
        assert_is_the_loop(two(scenario, rank), 2)
        assert len(two(scenario, rank)["seen"]) == BATCHES


def test_one_process_trains_by_the_mean_and_the_snapshot_of_a_loop(one):
    assert all(one("by_its_mean")["cut"])
    assert_is_the_loop(one("by_its_mean"), 1)


def test_a_cut_student_is_taught_what_a_whole_one_is(two):
    whole, cut = two("unsharded")["log"], two("by_its_mean")["log"]
    assert (any(two("unsharded")["cut"]), all(two("by_its_mean")["cut"])) == (False, True)
    names = [name for name in whole if measured(name)]
    assert "loss/train/kd" in names
    for name in names:
        expected = [value for _, value in whole[name]]
        assert [v for _, v in cut[name]] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_each_rank_averages_its_weights_and_copies_its_own_buffers(two):
    assert "1.running_mean" in dict(uneven().named_buffers())
    buffers = [two("with_buffers", rank)["seen"][-1][0]["1.running_mean"] for rank in (0, 1)]
    assert not torch.equal(*buffers)
    for rank in (0, 1):
        found = two("with_buffers", rank)
        mean, updates = found["first"], 0
        for step, (student, teacher, _) in enumerate(found["seen"], start=1):
            if step % EVERY == 0:
                kept, updates = kept_after(updates), updates + 1
                for name, now in student.items():
                    averaged = name.endswith(("weight", "bias"))
                    mean[name] = kept * mean[name] + (1 - kept) * now if averaged else now
            for name, expected in mean.items():
                torch.testing.assert_close(teacher[name], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scenario", [*CUT, "with_buffers"])
def test_it_is_cut_frozen_in_eval_mode_and_outside_the_student(two, scenario):
    for rank in (0, 1):
        found = two(scenario, rank)
        assert all(found["cut"])
        assert not any(found["trains"])
        assert not any(found["wants_gradients"])
        module = uneven() if scenario == "with_buffers" else mlp(0)
        assert found["names"] == [*Classifier(module).state_dict()]


@pytest.mark.parametrize("scenario", ["resumed_from_shards", "resumed_from_one_file"])
def test_a_resumed_run_ends_bitwise_where_the_straight_one_ends(two, scenario):
    for rank in (0, 1):
        straight, resumed = two(scenario, rank)["straight"], two(scenario, rank)["resumed"]
        assert resumed["batches"] == straight["batches"] == BATCHES
        torch.testing.assert_close(resumed["parts"], straight["parts"], rtol=0, atol=0)
        mean, *snapshots = straight["parts"][1:]
        assert not any(torch.equal(mean["0.weight"], other["0.weight"]) for other in snapshots)


@pytest.mark.parametrize(
    ("scenario", "written"),
    [
        ("shards_of_two_processes", "resumed_from_shards"),
        ("file_of_two_processes", "resumed_from_one_file"),
    ],
)
def test_one_process_goes_on_where_two_stopped(one, two, scenario, written):
    student, mean, snapshot, _ = two(written)["straight"]["seen"][STOP - 1]
    found = one(scenario)
    assert (found["batches"], len(found["seen"])) == (BATCHES, BATCHES - STOP)
    for ours, expected in zip(found["before"], (student, mean, snapshot), strict=False):
        torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def refused(student, config):
    source = MovingAverage(EMATeacher(), "teacher 0 (EMA of the student)")
    source.prepare(SimpleNamespace(fsdp_config=config, model=student), "auto")


def test_a_student_that_can_not_be_followed_is_refused():
    with pytest.raises(ValueError, match=r"teacher 0 \(EMA.*by FSDP1.*'fsdp': FSDP2Config\(\)"):
        refused(nn.Linear(2, 2), FSDPConfig())
    with pytest.raises(ValueError, match=r"teacher 0 \(EMA.*on the meta device.*in host memory"):
        refused(nn.Linear(2, 2, device="meta"), None)
