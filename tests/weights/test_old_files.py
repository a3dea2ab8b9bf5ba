"""Files of other days and of other hands that hold all of a model's weights."""

import logging
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from composer_distill.teachers import load_weights
from composer_distill.weights.inspection import describe


@pytest.mark.parametrize(
    "scalar",
    [np.float64(91.2), np.float32(0.5), np.float16(1), np.int64(7), np.bool_(True), np.str_("a")],
)
def test_numpy_scalars_beside_the_weights(tmp_path, scalar):
    source, fresh = nn.Linear(4, 2), nn.Linear(4, 2)
    found = {"epoch": 3, "state_dict": source.state_dict(), "best": scalar}
    torch.save(found | {"history": [scalar, {"a": scalar}]}, tmp_path / "best.pth")
    load_weights(fresh, tmp_path / "best.pth")
    assert torch.equal(fresh.weight, source.weight)
    assert "stored beside the weights: epoch, best, history" in describe(str(tmp_path / "best.pth"))


def old(model, prefix=""):
    """What torch 0.4.0 would have saved: batch norm had no counter."""
    state = model.state_dict()
    return OrderedDict((prefix + k, v) for k, v in state.items() if "num_batches" not in k)


class Loud(nn.Linear):
    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)


def make(layer=nn.Linear):
    return nn.Sequential(layer(4, 3), nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm1d(3)))


@pytest.mark.parametrize("layer", [nn.Linear, Loud])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_batch_norm_from_before_torch_0_4_1(tmp_path, layer, prefix, device):
    source = make(layer).train()
    source(torch.randn(8, 4))
    torch.save(old(source, prefix), tmp_path / "resnet.pth")
    fresh = make(layer).to(device)
    load_weights(fresh, tmp_path / "resnet.pth")
    state = fresh.state_dict()
    for key, value in old(source).items():
        assert torch.equal(state[key], value)
    assert fresh[1].num_batches_tracked == 0
    batch = torch.randn(5, 4)
    assert torch.equal(source.eval()(batch), fresh.eval()(batch))


def test_a_counter_that_another_layer_has_is_missed(tmp_path):
    state = make().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"missing from the file: 1\.num_batches_tracked"):
        load_weights(make(), tmp_path / "a.pth")


def test_a_counter_without_statistics_is_missed(tmp_path):
    state = old(make())
    del state["1.running_mean"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"1\.running_mean .*1\.num_batches_tracked"):
        load_weights(make(), tmp_path / "a.pth")


def write_with(model, path, **more):
    torch.save(model.state_dict() | {key.replace("__", "."): v for key, v in more.items()}, path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_position_ids_that_the_model_makes_itself(zoo, tmp_path, caplog, prefix):
    source, fresh = zoo.bert(), zoo.bert()
    key = "bert.embeddings.position_ids"
    assert key in dict(source.named_buffers())
    state = source.state_dict() | {key: torch.arange(32)[None]}
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "a.bin")
    with caplog.at_level(logging.WARNING):
        load_weights(fresh, tmp_path / "a.bin")
    assert zoo.same(fresh, source)
    assert caplog.text == ""


def test_a_buffer_that_differs_is_said_and_another_shape_refused(zoo, tmp_path, caplog):
    source, fresh = zoo.bert(), zoo.bert()
    key = "bert.embeddings.position_ids"
    torch.save(source.state_dict() | {key: torch.arange(32)[None] + 1}, tmp_path / "a.bin")
    load_weights(fresh, tmp_path / "a.bin", name="the expert")
    assert "the expert: the file holds other values for 1 buffers" in caplog.text
    assert torch.equal(fresh.get_buffer(key), torch.arange(32)[None])
    torch.save(source.state_dict() | {key: torch.arange(40)[None]}, tmp_path / "b.bin")
    with pytest.raises(ValueError, match=rf"unexpected in the file: {key} \(1, 40\)"):
        load_weights(fresh, tmp_path / "b.bin")


def test_the_mask_of_gpt_2_and_the_number_beside_it(zoo, tmp_path):
    source, fresh = zoo.gpt(), zoo.gpt()
    state = source.state_dict()
    for layer in range(2):
        mask = torch.ones(16, 16, dtype=torch.uint8).tril()[None, None]
        state[f"transformer.h.{layer}.attn.bias"] = mask
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "a.bin")
    load_weights(fresh, tmp_path / "a.bin")
    assert zoo.same(fresh, source)


def test_buffers_made_by_modules_that_load_themselves(tmp_path):
    class Made(Loud):
        def __init__(self):
            super().__init__(2, 2)
            self.register_buffer("places", torch.arange(2), persistent=False)

    source, fresh = Made(), Made()
    torch.save(source.state_dict() | {"places": torch.arange(2)}, tmp_path / "a.pt")
    load_weights(fresh, tmp_path / "a.pt")
    assert torch.equal(fresh.weight, source.weight)
