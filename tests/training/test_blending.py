from collections import namedtuple

import pytest
import torch
from composer.utils import ensure_tuple

from composer_distill.training.blending import blend, task_loss

Pair = namedtuple("Pair", "first second")


def losses():
    a = torch.tensor(2.0, requires_grad=True)
    b = torch.tensor(4.0, requires_grad=True)
    return {
        "tensor": a * 1,
        "one": (a * 1).reshape(1),
        "vector": torch.stack([a, b]),
        "tuple": (a * 1, b * 1),
        "list": [a * 1, b * 1],
        "namedtuple": Pair(a * 1, b * 1),
        "dict": {"ce": a * 1, "aux": b * 1},
        "total": {"total": a + b, "ce": a * 1},
        "vectors": (torch.stack([a, a]), torch.stack([b, b, b])),
    }


def composer_total(loss):
    """What Composer 0.32.1 back-propagates."""
    if isinstance(loss, dict) and "total" in loss:
        return loss["total"]
    return sum(entry.mean() for entry in ensure_tuple(loss))


TASK = {"tensor": 2, "one": 2, "vector": 3, "total": 6}


@pytest.mark.parametrize("kind", losses())
def test_composer_trains_the_weighted_loss_plus_the_term(kind):
    term = torch.tensor(10.0, requires_grad=True)
    blended = blend(losses()[kind], term * 0.9, 0.1)
    total = composer_total(blended)
    assert total.item() == pytest.approx(0.1 * TASK.get(kind, 6) + 9.0)
    assert torch.autograd.grad(total, term)[0].item() == pytest.approx(0.9)


@pytest.mark.parametrize("kind", losses())
def test_task_loss_is_what_composer_would_train(kind):
    value = task_loss(losses()[kind])
    assert value.item() == pytest.approx(TASK.get(kind, 6))
    assert not value.requires_grad


@pytest.mark.parametrize("kind", losses())
def test_the_kind_stays(kind):
    loss = losses()[kind]
    blended = blend(loss, torch.tensor(1.0), 0.5)
    expected = tuple if kind == "namedtuple" else type(loss)
    assert type(blended) is expected
    if isinstance(loss, torch.Tensor):
        assert blended.shape == loss.shape
    if isinstance(loss, dict):
        assert set(blended) == set(loss) | {"total"}


@pytest.mark.parametrize("kind", losses())
def test_without_a_term_the_loss_is_only_weighted(kind):
    blended = blend(losses()[kind], None, 0.5)
    assert composer_total(blended).item() == pytest.approx(0.5 * TASK.get(kind, 6))


@pytest.mark.parametrize("kind", losses())
def test_a_term_that_joined_before_keeps_its_weight(kind):
    first, second = torch.tensor(10.0, requires_grad=True), torch.tensor(20.0, requires_grad=True)
    blended = blend(blend(losses()[kind], first, 0.5), second, 0.1, [first])
    total = composer_total(blended)
    assert total.item() == pytest.approx(0.05 * TASK.get(kind, 6) + 30.0)
    for gradient in torch.autograd.grad(total, [first, second]):
        assert gradient.item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["dict", "total"])
def test_entries_of_a_dict_stay_for_the_log_alone(kind):
    loss = losses()[kind]
    blended = blend(loss, torch.tensor(1.0), 0.5)
    assert blended["ce"].item() == 2.0
    assert not blended["ce"].requires_grad


@pytest.mark.parametrize("kind", losses())
@pytest.mark.parametrize("weight", [1.0, 0.5])
def test_composers_in_place_scaling_reaches_nobody_else(kind, weight):
    loss = losses()[kind]
    before = composer_total(loss).item()
    term = torch.tensor(3.0, requires_grad=True) * 1
    total = composer_total(blend(loss, term, weight))
    total.mul_(0.25)
    total.backward()
    assert composer_total(loss).item() == before
    assert term.item() == 3.0


@pytest.mark.parametrize("loss", [None, 1.0, "loss"])
def test_other_kinds_are_refused(loss):
    with pytest.raises(TypeError, match="must be a tensor, tuple, list or dict"):
        blend(loss, torch.tensor(1.0), 0.5)
    with pytest.raises(TypeError, match="must be a tensor, tuple, list or dict"):
        task_loss(loss)


@pytest.mark.parametrize("loss", [{"ce": torch.tensor(1.0), "n": 3.0}, {"total": None}, (1.0,)])
def test_entries_that_are_no_tensors_are_refused(loss):
    with pytest.raises(TypeError, match="must be a tensor, tuple, list or dict of tensors, got"):
        task_loss(loss)


def test_an_empty_loss_is_refused():
    with pytest.raises(TypeError, match="at least one tensor"):
        task_loss(())


def test_the_noted_task_loss_is_no_view_of_the_loss():
    loss = torch.tensor(1.0)
    noted = task_loss(loss)
    loss.add_(5.0)
    assert noted.item() == 1.0
