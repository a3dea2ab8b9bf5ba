import pytest
import torch

from composer_distill.losses import (
    BernoulliKL,
    HardLabel,
    KLDivergence,
    LogitMSE,
    StandardizedLogits,
)
from composer_distill.terms.comparison import (
    MultiHotWatch,
    check_class_axis,
    check_shapes,
    compares_classes,
)

LOGITS = torch.zeros(2, 3)
X, Y = torch.ones(2, 4), torch.tensor([0, 1])
MAPPING = {"input_ids": X, "attention_mask": X + 1, "labels": Y, "extra": Y}
MAPS, CLASSES_OF_PIXELS = torch.zeros(2, 5, 4, 6), torch.zeros(2, 4, 6, dtype=torch.long)


def test_shapes_that_agree_pass():
    check_shapes(LOGITS, LOGITS + 1, "teacher 0 (x)")


def test_other_classes_are_refused():
    with pytest.raises(
        ValueError, match=r"teacher 1 \(resnet101\): its logits have shape \(8, 21\)"
    ) as error:
        check_shapes(torch.zeros(8, 10), torch.zeros(8, 21), "teacher 1 (resnet101)")
    assert "where the student's have (8, 10)" in str(error.value)
    assert "The class axes differ" in str(error.value)


@pytest.mark.parametrize("shape", [(1, 10), (8, 1, 10), (10,)])
def test_other_positions_are_refused_though_torch_would_broadcast(shape):
    with pytest.raises(ValueError, match="same positions"):
        check_shapes(torch.zeros(8, 10), torch.zeros(shape), "teacher 0 (x)")


@pytest.mark.parametrize("swapped", [False, True])
def test_a_model_of_labelled_positions_alone_is_told_so(swapped):
    both = [torch.zeros(14, 32), torch.zeros(4, 10, 32)]
    with pytest.raises(ValueError, match=r"labelled positions alone.*sparse_prediction=True"):
        check_shapes(*(reversed(both) if swapped else both), "teacher 0 (x)")
    with pytest.raises(ValueError, match="same positions") as error:
        check_shapes(torch.zeros(4, 9, 32), both[1], "teacher 0 (x)")
    assert "labelled positions" not in str(error.value)


def test_a_student_without_a_class_axis_is_named_itself():
    with pytest.raises(ValueError, match=r"^the student: its output has shape \(8,\)") as error:
        check_shapes(torch.zeros(8), torch.zeros(8, 10), "teacher 0 (x)")
    assert "teacher 0 (x) have (8, 10)" in str(error.value)
    assert "student_output_fn" in str(error.value)


@pytest.mark.parametrize(
    "labels", [CLASSES_OF_PIXELS, torch.zeros(2, 16, 24)], ids=["of the logits' size", "4 x finer"]
)
@pytest.mark.parametrize("pack", [lambda y: (X, y), lambda y: {"pixel_values": X, "labels": y}])
def test_classes_on_axis_1_and_a_loss_over_the_last_are_refused(pack, labels):
    with pytest.raises(ValueError, match=r"lie on axis 1. Pass the loss with dim=1"):
        check_class_axis(pack(labels), MAPS, -1)


@pytest.mark.parametrize(
    ("loss", "says"),
    [
        (KLDivergence(), True),
        (0.5 * HardLabel() + LogitMSE(), True),
        (StandardizedLogits(KLDivergence(1.0)), True),
        (LogitMSE(), None),
        (torch.nn.MSELoss(), None),
        (BernoulliKL(), False),
        (BernoulliKL() + LogitMSE(), False),
    ],
)
def test_a_loss_says_whether_it_compares_classes(loss, says):
    assert compares_classes(loss) is says


@pytest.mark.parametrize("shape", [(), (8,)])
def test_logits_without_a_class_axis_are_refused(shape):
    with pytest.raises(ValueError, match=r"the student: its logits .* one number a sample"):
        check_class_axis((X, Y), torch.zeros(shape), -1)


@pytest.mark.parametrize(
    ("batch", "logits", "axis"),
    [
        ((X, CLASSES_OF_PIXELS), MAPS, 1),
        ((X, CLASSES_OF_PIXELS), MAPS.movedim(1, -1), -1),
        ((X, Y), LOGITS, -1),
        ((X, None), MAPS, -1),
        (X, MAPS, -1),
        (MAPPING, MAPS, -1),
    ],
)
def test_classes_where_the_loss_takes_them_pass(batch, logits, axis):
    check_class_axis(batch, logits, axis)


SOFTMAX, SIGMOID = 0.5 * KLDivergence() + LogitMSE(), BernoulliKL() + LogitMSE()
SEVERAL, MIXED = torch.tensor([[1.0, 0, 1], [0, 1, 0]]), torch.tensor([[0.3, 0.7, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("loss", "batch", "warned"),
    [
        (SOFTMAX, (X, SEVERAL), True),
        (StandardizedLogits(KLDivergence()), {"labels": SEVERAL}, True),
        (SOFTMAX, (X, torch.zeros(2, 3)), True),
        (SIGMOID, (X, SEVERAL), False),
        (torch.nn.MSELoss(), (X, SEVERAL), False),
        (SOFTMAX, (X, MIXED), False),
        (SOFTMAX, (X, 3 * SEVERAL), False),  # numbers, such as what a regression learns
        (SOFTMAX, (X, Y), False),
        (SOFTMAX, X, False),
    ],
)
def test_several_labels_beside_a_softmax_warn_once(loss, batch, warned, caplog):
    watch = MultiHotWatch(loss)
    for _ in range(3):
        watch.look(batch, LOGITS, -1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == warned
    assert all("For independent labels use BernoulliKL" in text for text in said)


def test_several_labels_may_come_in_a_later_batch(caplog):
    watch = MultiHotWatch(SOFTMAX)
    for batch in ((X, MIXED), (X, SEVERAL), (X, SEVERAL)):
        watch.look(batch, LOGITS, -1)
    assert len(caplog.records) == 1


def test_several_labels_may_come_after_many_batches_with_one_each(caplog):
    watch = MultiHotWatch(SOFTMAX)
    for number in range(40):
        watch.look((X, SEVERAL if number > 20 else MIXED), LOGITS, -1)
    assert len(caplog.records) == 1
