"""Students that write in two processes, with texts of unlike length."""

import copy

import pytest
import torch
from integration.test_on_policy import logits_at_continuation
from integration.test_processes import launch
from integration.workers import writing
from on_policy.by_hand import prompts_by_hand, student, write_by_hand

from composer_distill.on_policy.drawing import is_drawn, stream_seed


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return launch("writing.py", tmp_path_factory.mktemp("writing"))


def jsd(logits, targets):
    p, q = targets.softmax(-1), logits.softmax(-1)
    m = (p + q) / 2
    return ((p * (p.log() - m.log()) + q * (q.log() - m.log())) / 2).sum(-1).mean()


def by_hand(fraction):
    """The weights of two ranks that average their gradients, and the texts of each."""
    model, teacher, texts = student(), student(seed=1), ([], [])
    for index, batch in enumerate(writing.whole_batches()):
        losses = []
        now = copy.deepcopy(model)
        for rank in range(2):
            rows = writing.of_rank(batch, rank, 2)
            prompts = prompts_by_hand(rows)
            if is_drawn(fraction, writing.SEED, index):
                own = write_by_hand(
                    now, prompts, stream_seed(writing.SEED, index, rank), writing.NEW
                )
            else:
                own = [row[row != -100].tolist() for row in rows["labels"]]
            texts[rank].append(own)
            pairs = list(zip(prompts, own, strict=True))
            logits = torch.cat([logits_at_continuation(model, *pair) for pair in pairs])
            targets = torch.cat([logits_at_continuation(teacher, *pair) for pair in pairs])
            losses.append(jsd(logits, targets.detach()))
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(sum(losses) / 2, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(writing.LR * gradient)
    return model, texts


def test_two_processes_are_gkd_by_hand(two):
    model, texts = by_hand(1.0)
    longest = [[max(map(len, rows)) for rows in of_rank] for of_rank in texts]
    assert longest[0] != longest[1]  # so that the ranks wrote for unlike numbers of steps
    for rank in (0, 1):
        found = two("replicated", rank)
        assert found["texts"] == texts[rank]
        expected = {name: value.detach() for name, value in model.state_dict().items()}
        found = {name.removeprefix("module."): v for name, v in found["weights"].items()}
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_both_ranks_write_the_same_batches(two):
    _, texts = by_hand(0.5)
    for rank in (0, 1):
        assert two("mixed", rank)["texts"] == texts[rank]


def test_both_ranks_log_the_same_values_of_all_texts(two):
    first, second = (two("replicated", rank)["log"] for rank in (0, 1))
    names = [name for name in first if name.startswith("on_policy")]
    assert len(names) == 6
    own = [two("replicated", rank)["texts"] for rank in (0, 1)]
    for name in names:
        assert [v for _, v in first[name]] == [v for _, v in second[name]], name
    lengths = [[len(row) for rows in both for row in rows] for both in zip(*own, strict=True)]
    means = [sum(each) / len(each) for each in lengths]
    assert [value for _, value in first["on_policy/mean_length"]] == pytest.approx(means)


@pytest.mark.parametrize("scenario", ["resumed", "resumed_sharded"])
def test_a_resumed_run_goes_on_with_the_texts_that_each_rank_kept(two, scenario):
    for rank in (0, 1):
        found = two(scenario, rank)
        torch.testing.assert_close(found["resumed"], found["straight"], rtol=0, atol=0)
        straight, later = found["texts"]
        assert later == straight[2:]
    assert two(scenario, 0)["texts"] != two(scenario, 1)["texts"]


@pytest.mark.parametrize("scenario", ["sharded", "sharded_by_the_first_fsdp"])
def test_students_that_are_cut_over_the_ranks_write_what_whole_ones_write(two, scenario):
    lengths = []
    for rank in (0, 1):
        prompts = prompts_by_hand(writing.of_rank(writing.whole_batches()[0], rank, 2))
        found = two(scenario, rank)
        seed = stream_seed(writing.SEED, 0, rank)
        written = found["texts"][0]
        assert written == write_by_hand(student(), prompts, seed, writing.NEW)
        lengths.append(max(map(len, written)))
    assert lengths[0] < lengths[1]  # and nobody waited for ever


def test_students_that_are_cut_train_on_what_they_write(two):
    for rank in (0, 1):
        found = two("sharded", rank)
        assert found["cut"]
        assert len(found["texts"]) == 2
        assert all(bool(value.isfinite().all()) for value in found["weights"].values())
