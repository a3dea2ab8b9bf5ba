"""Models that refuse to be moved or cast."""

import pytest
import torch
import transformers
from torch import nn
from transformers.utils.quantization_config import QuantizationMethod

from composer_distill.teachers import Teacher
from composer_distill.teachers.roster import check_apart

CPU, META = torch.device("cpu"), torch.device("meta")


def quantised(method):
    """A model as ``from_pretrained`` marks one whose weights it read in few bits."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = transformers.LlamaConfig(vocab_size=40, num_attention_heads=2, **sizes)
    model = transformers.LlamaForCausalLM(config)
    model.quantization_method = method
    model.is_loaded_in_8bit = True
    return model


@pytest.mark.parametrize("method", [QuantizationMethod.GPTQ, QuantizationMethod.BITS_AND_BYTES])
def test_a_quantised_model_that_is_in_its_place_is_left_alone(method):
    teacher = Teacher(quantised(method))
    teacher.place(CPU)
    assert teacher.model.dtype == torch.float32


def test_one_that_is_moved_is_moved_without_naming_a_type():
    teacher = Teacher(quantised(QuantizationMethod.GPTQ))
    teacher.place(META)
    assert teacher.model.device == META


def test_one_that_cannot_be_moved_is_named_with_the_remedy():
    teacher = Teacher(quantised(QuantizationMethod.BITS_AND_BYTES), name="small")
    with pytest.raises(ValueError, match=r"teacher 'small': .*device_map=\{'': 'meta'\}"):
        teacher.place(META)


def test_one_that_cannot_be_cast_is_named_with_the_remedy():
    teacher = Teacher(quantised(QuantizationMethod.GPTQ), dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"as torch.bfloat16 .*leave Teacher\(\.\.\., dtype="):
        teacher.place(CPU)


def test_complex_numbers_are_not_cut_to_their_real_part():
    model = nn.Linear(2, 2)
    model.register_buffer("rotation", torch.tensor([1j]))
    teacher = Teacher(model, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"complex tensors, .*leave Teacher\(\.\.\., dtype="):
        teacher.place(CPU)
    assert model.rotation.item() == 1j


class Around(torch.Tensor):
    """A tensor without storage of its own, as torchao's and quanto's weights are."""

    @staticmethod
    def __new__(cls, data):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data):
        self.data_ = data

    def __tensor_flatten__(self):
        return ["data_"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].data_)
        raise NotImplementedError(function)


def holder(data):
    module = nn.Module()
    module.weight = nn.Parameter(Around(data), requires_grad=False)
    return module


def test_tensors_around_others_share_what_they_hold():
    one, other = torch.ones(3), torch.ones(3)
    check_apart([Teacher(holder(one))], holder(other), [])
    with pytest.raises(ValueError, match="shares memory with the student"):
        check_apart([Teacher(holder(one))], holder(one), [])
