"""Both weights in a checkpoint of Composer's EMA, under the names that runs give them."""

import pytest
import torch
from torch import nn

from composer_distill.teachers import load_weights


def write(path, weights, beside, buffers=None, **state):
    """What Composer writes: one set in the model's place, the other in the algorithm's."""
    held = {"named_parameters_dict": beside, "named_buffers_dict": buffers or {}}
    ema = {"ema_weights_active": True, "ema_started": True, "ema_model": held} | state
    torch.save({"state": {"model": weights, "algorithms": [("EMA", ema)]}}, path)


def more(weights, prefix=""):
    return {prefix + key: value + 1 for key, value in weights.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_the_average_of_a_wrapped_model(tmp_path, prefix):
    model, fresh = nn.Sequential(nn.Linear(2, 1)), nn.Sequential(nn.Linear(2, 1))
    write(tmp_path / "a.pt", model.state_dict(), more(model.state_dict(), prefix))
    load_weights(fresh, tmp_path / "a.pt", ema=False)
    assert torch.equal(fresh[0].weight, model[0].weight + 1)
    load_weights(fresh, tmp_path / "a.pt", ema=True)
    assert torch.equal(fresh[0].weight, model[0].weight)


def test_buffers_that_are_not_saved_stay_where_they_are(tmp_path):
    model, fresh = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    weights = model.state_dict()
    parameters = {key: value + 1 for key, value in model.named_parameters()}
    buffers = {key: value + 2 for key, value in model.named_buffers()} | {"made": torch.ones(3)}
    write(tmp_path / "a.pt", weights, parameters, buffers)
    load_weights(fresh, tmp_path / "a.pt", ema=False)
    assert torch.equal(fresh.bias, model.bias + 1)
    assert torch.equal(fresh.running_var, model.running_var + 2)


def test_tied_weights_are_kept_once(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model, fresh, apart = Tied(), Tied(), Tied()
    apart.head.weight = nn.Parameter(apart.embed.weight.detach().clone())
    write(tmp_path / "a.pt", model.state_dict(), {"embed.weight": model.embed.weight + 1})
    for other in (fresh, apart):
        load_weights(other, tmp_path / "a.pt", ema=False)
        assert torch.equal(other.embed.weight, model.embed.weight + 1)
        assert torch.equal(other.head.weight, model.embed.weight + 1)


@pytest.mark.parametrize(
    ("beside", "match"),
    [
        (lambda w: {}, "fits 0 of the model's 2 weights .not weight, bias"),
        (lambda w: {f"other.net.{k}": v for k, v in w.items()}, "fits 0 of the model's 2 weights"),
        (lambda w: {"weight": w["weight"]}, "fits 1 of the model's 2 weights .not bias"),
        (lambda w: w | {"bias": torch.zeros(7)}, "fits 1 of the model's 2 weights .not bias"),
        (lambda w: {"weight": 5}, "its EMA weights are no tensors"),
    ],
)
def test_a_choice_that_matches_nothing_or_a_part(tmp_path, beside, match):
    layer = nn.Linear(2, 1)
    before = layer.weight.clone()
    write(tmp_path / "a.pt", layer.state_dict(), beside(more(layer.state_dict())))
    with pytest.raises(ValueError, match=match):
        load_weights(layer, tmp_path / "a.pt", ema=False)
    assert torch.equal(layer.weight, before)
    load_weights(layer, tmp_path / "a.pt", ema=True)  # what stands in the model's place
    assert torch.equal(layer.weight, before)


def test_an_average_that_had_not_begun(tmp_path):
    layer = nn.Linear(2, 1)
    state = {"ema_started": False, "ema_weights_active": False}
    write(tmp_path / "a.pt", layer.state_dict(), more(layer.state_dict()), **state)
    with pytest.raises(ValueError, match="its EMA had not begun when it was saved"):
        load_weights(layer, tmp_path / "a.pt", ema=True)
    load_weights(layer, tmp_path / "a.pt", ema=False)
