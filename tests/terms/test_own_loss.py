from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from composer_distill.terms.own_loss import own_loss, predicts_next
from composer_distill.terms.student import StudentReader
from composer_distill.terms.task import Task

CLASSES = 11


def microbatch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 0.1 * torch.randn(3, 6, CLASSES, generator=generator)  # as even as at random weights
    labels = torch.randint(0, CLASSES, (3, 6), generator=generator)
    labels[1, :3] = labels[2, 4:] = -100
    return logits.to(dtype).requires_grad_(), labels


def rows_of(logits, labels, shift):
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return logits.flatten(0, 1), labels.flatten()


WEIGHTS = torch.linspace(0.2, 3.0, CLASSES)
LOSSES = {
    "mean": F.cross_entropy,
    "sum": lambda s, y: F.cross_entropy(s, y, reduction="sum"),
    "vector's mean": lambda s, y: F.cross_entropy(s, y, reduction="none").mean(),
    "smoothed": lambda s, y: F.cross_entropy(s, y, label_smoothing=0.1),
    "weighted": lambda s, y: F.cross_entropy(s, y, weight=WEIGHTS),
    "with a router's": lambda s, y: F.cross_entropy(s, y) + 0.37,
}


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kind", LOSSES)
def test_the_loss_tells_which_label_the_logits_predict(kind, shift):
    logits, labels = microbatch()
    loss = LOSSES[kind](*rows_of(logits, labels, shift))
    assert predicts_next(loss, logits, labels) is shift
    loss.backward()  # the graph is still there, and nothing else was added to it
    expected = torch.autograd.grad(LOSSES[kind](*rows_of(logits, labels, shift)), logits)[0]
    assert torch.equal(logits.grad, expected)


@pytest.mark.parametrize("shift", [True, False])
def test_half_precision_tells_too(shift):
    logits, labels = microbatch(dtype=torch.bfloat16)
    assert predicts_next(F.cross_entropy(*rows_of(logits, labels, shift)), logits, labels) is shift


@pytest.mark.parametrize("shift", [True, False])
def test_without_a_graph_the_value_tells(shift):
    logits, labels = microbatch()
    loss = F.cross_entropy(*rows_of(logits, labels, shift)).detach()
    assert predicts_next(loss, logits.detach(), labels) is shift


def test_large_vocabularies_are_read_in_pieces(monkeypatch):
    logits, labels = microbatch()
    monkeypatch.setattr("composer_distill.terms.own_loss._CHUNK_ELEMENTS", 2 * CLASSES)
    assert predicts_next(F.cross_entropy(*rows_of(logits, labels, True)), logits, labels) is True


def test_another_loss_tells_nothing():
    logits, labels = microbatch()
    assert predicts_next(logits.square().mean(), logits, labels) is None
    assert predicts_next(torch.tensor(2.4), logits, labels) is None


def test_labels_that_are_all_one_tell_nothing():
    logits, labels = microbatch()
    labels, logits = torch.full_like(labels, 4), logits.detach()[:, :1].repeat(1, 6, 1)
    assert (
        predicts_next(F.cross_entropy(logits.flatten(0, 1), labels.flatten()), logits, labels)
        is None
    )


def test_no_labels_at_all_tell_nothing():
    logits, labels = microbatch()
    loss = F.cross_entropy(logits.flatten(0, 1), torch.full((18,), -100))  # which is NaN
    assert predicts_next(loss, logits, torch.full_like(labels, -100)) is None


def test_a_padding_label_past_the_classes_is_left_out():
    logits, labels = microbatch()
    loss = F.cross_entropy(*rows_of(logits, labels, True))
    assert predicts_next(loss, logits, labels.masked_fill(labels == -100, CLASSES)) is True


def test_hooks_that_expect_a_backward_are_not_called():
    logits, labels = microbatch()
    called = []
    logits.register_hook(called.append)
    loss = LOSSES["smoothed"](*rows_of(logits, labels, True))
    assert predicts_next(loss, logits, labels) is None
    assert called == []


def test_the_output_holds_the_own_loss_before_the_trainer():
    ours, trainers = torch.tensor(1.0), torch.tensor(2.0)
    assert own_loss(trainers, {"loss": ours}) is ours
    assert own_loss(trainers, SimpleNamespace(loss=ours)) is ours
    assert own_loss(trainers, torch.zeros(2, 3)) is trainers
    assert own_loss({"total": trainers}, torch.zeros(2, 3)) is None
    assert own_loss(torch.zeros(3), None) is None


class TestReader:
    def ask(self, reader, loss_of, shift, **microbatch_options):
        logits, labels = microbatch(**microbatch_options)
        reader.ask_own_loss(
            loss_of(*rows_of(logits, labels, shift)), {"labels": labels}, None, logits
        )

    @pytest.mark.parametrize("shift", [True, False])
    def test_it_asks_once(self, shift, caplog):
        caplog.set_level("INFO")
        reader = StudentReader()
        self.ask(reader, F.cross_entropy, shift)
        self.ask(reader, F.cross_entropy, not shift)
        assert reader.task == Task(shift=shift)
        (record,) = caplog.records
        assert record.levelname == "INFO"
        told = "the next position's label" if shift else "the label of their own position"
        assert told in record.message

    def test_a_causal_class_whose_loss_does_not_shift_counts_its_labels(self):
        reader = StudentReader()
        reader.task = Task(shift=True)
        self.ask(reader, F.cross_entropy, False)
        assert reader.task == Task(labelled=True)
        assert reader.task.counts_labels

    def test_a_loss_that_tells_nothing_leaves_the_classs_rule_and_says_so_once(self, caplog):
        reader = StudentReader()
        reader.task = Task(shift=True)
        for seed in range(9):
            self.ask(reader, lambda s, y: s.square().mean(), True, seed=seed)
        assert reader.task == Task(shift=True)
        (record,) = caplog.records
        assert record.levelname == "WARNING"
        assert "taken to predict the next position's label" in record.message
        assert "mask_fn" in record.message

    @pytest.mark.parametrize(
        ("labels", "logits"),
        [
            (torch.tensor([1, 0]), torch.zeros(2, 3)),
            (torch.zeros(2, 4, 4, dtype=torch.long), torch.zeros(2, 5, 4, 4)),
            (torch.zeros(2, 4), torch.zeros(2, 4, 3)),
            (None, torch.zeros(2, 4, 3)),
        ],
        ids=["samples", "pixels", "numbers", "none"],
    )
    def test_what_is_no_sequence_of_labels_is_not_asked(self, labels, logits, caplog):
        reader = StudentReader()
        for _ in range(9):
            reader.ask_own_loss(torch.tensor(1.0), {"labels": labels}, None, logits)
        assert reader.task == Task()
        assert caplog.text == ""
