"""Hooks that cannot lie: each guard has a test that fails without it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from composer_distill.terms.features.recorder import Recorder, Tap


def heard(model, *taps, inputs=None, owner="the student"):
    recorder = Recorder(owner)
    recorder.listen(taps)
    output = model(torch.randn(3, 4) if inputs is None else inputs)
    recorder.stop()
    values = [recorder.value(tap) for tap in taps]
    return values[0] if len(values) == 1 else values, output


def test_what_a_layer_gave_is_heard():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    value, output = heard(model, Tap("1", model[1]))
    assert value is output
    inputs = torch.randn(3, 4)
    value, _ = heard(model, Tap("0", model[0], "input"), inputs=inputs)
    assert value is inputs


def test_a_layer_that_did_not_run_is_an_error():
    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, inputs):
            return self.used(inputs) + self.unused.forward(inputs)  # which no hook hears

    model = Skips()
    with pytest.raises(ValueError, match="the student: the layer 'unused' did not run"):
        heard(model, Tap("unused", model.unused))


def test_a_layer_that_ran_twice_is_an_error():
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"the layer '0' ran 2 times in one forward.*callable"):
        heard(nn.Sequential(layer, nn.ReLU(), layer), Tap("0", layer))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_tensor_that_was_overwritten_is_an_error(gradients):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.ReLU(inplace=True))
    with torch.set_grad_enabled(gradients):
        with pytest.raises(ValueError, match=r"'0' gave a tensor that was overwritten.*inplace"):
            heard(model, Tap("0", model[0]))
        value, output = heard(model, Tap("1", model[1]))
    assert value is output


def test_a_view_that_was_overwritten_is_an_error():
    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, inputs):
            hidden = self.layer(inputs)
            hidden[:, 0] = 0.0
            return hidden

    model = Overwrites()
    with torch.no_grad(), pytest.raises(ValueError, match="overwritten"):
        heard(model, Tap("layer", model.layer))


def test_an_input_that_its_layer_overwrites_is_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    with pytest.raises(ValueError, match="overwritten"):
        heard(model, Tap("1", model[1], "input"))


def test_an_input_is_what_the_layer_before_gave_whatever_other_hooks_make_of_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda module, given: (given[0] + 1,))
    inputs = torch.ones(2, 4)
    value, _ = heard(model, Tap("1", model[1], "input"), inputs=inputs)
    assert torch.equal(value, model[0](inputs))


def test_of_a_tuple_the_first_tensor_counts():
    class Block(nn.Module):
        def forward(self, inputs):
            return None, inputs + 1, inputs

    inputs = torch.zeros(2, 2)
    value, _ = heard(block := Block(), Tap("block", block), inputs=inputs)
    assert torch.equal(value, inputs + 1)


def test_what_is_no_tensor_is_an_error():
    class Counts(nn.Module):
        def forward(self, inputs):
            return len(inputs)

    with pytest.raises(TypeError, match=r"'counts' gave no tensor to compare, but int"):
        heard(model := Counts(), Tap("counts", model))


def test_what_inference_mode_made_can_be_compared():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    with torch.inference_mode():
        recorder = Recorder("the teacher")
        recorder.listen([Tap("0", model[0])])
        inputs = torch.randn(3, 4)
        model(inputs)
    value = recorder.value(Tap("0", model[0]))
    assert not value.is_inference()
    torch.testing.assert_close(value, model[0](inputs.clone()).detach())


def test_hooks_are_gone_when_listening_stops():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    recorder = Recorder("the student")
    recorder.listen([Tap("0", model[0]), Tap("1", model[1], "input")])
    assert len(model[0]._forward_hooks) == len(model[1]._forward_pre_hooks) == 1
    recorder.listen([Tap("0", model[0])])
    assert len(model[0]._forward_hooks) == 1
    recorder.stop()
    assert not model[0]._forward_hooks
    assert not model[1]._forward_pre_hooks
    model(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="did not run"):
        recorder.value(Tap("0", model[0]))


class Answers(nn.Module):
    """Answers as a Hugging Face model does, with hidden states where its config says so."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(output_hidden_states=False)

    def forward(self, inputs):
        states = {"hidden_states": (inputs, 2 * inputs)} if self.config.output_hidden_states else {}
        return {"logits": inputs, **states}


def test_two_who_want_an_entry_of_one_forward_both_hear_it_and_leave_none():
    model = Answers()
    tap = Tap("hidden_states.1", model, key="hidden_states", index=1)
    recorders = Recorder("one"), Recorder("other")
    for recorder in recorders:
        recorder.listen([tap])
    output = model(torch.ones(2))
    for recorder in recorders:
        recorder.stop()
    assert [recorder.value(tap).tolist() for recorder in recorders] == [[2.0, 2.0]] * 2
    assert list(output) == ["logits"]
    assert not model.config.output_hidden_states
