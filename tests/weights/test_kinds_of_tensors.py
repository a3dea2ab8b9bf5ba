"""Tensors of every kind in a file, and in a model: read as they are, or refused by name."""

import pytest
import torch
from integration.harness import Classifier, mlp, trainer_for
from torch import nn

from composer_distill import Distillation, KLDivergence, Teacher
from composer_distill.teachers import load_weights
from composer_distill.weights.inspection import describe

DENSE = {
    str(dtype).removeprefix("torch."): torch.arange(1, 9).to(dtype)
    for dtype in (
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu, torch.float16, torch.bfloat16, torch.float64,
        torch.complex64, torch.complex128, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.int8, torch.int16, torch.bool,
    )
} | {"bits8": torch.arange(1, 9, dtype=torch.uint8).view(torch.bits8)}  # fmt: skip


def odd(kind):
    base = torch.eye(4)
    return {
        "sparse_coo": base.to_sparse,
        "sparse_csr": base.to_sparse_csr,
        "sparse_bsr": lambda: base.to_sparse_bsr(2),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "quantized": lambda: torch.quantize_per_tensor(base, 0.1, 0, torch.quint8),
    }[kind]()


ODD = ["sparse_coo", "sparse_csr", "sparse_bsr", "nested", "quantized"]


def model_with(tensor):
    model = nn.Linear(2, 2)
    model.register_buffer("x", tensor)
    return model


def bytes_of(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("name", DENSE)
def test_dense_ones_are_loaded_inspected_and_told_apart(tmp_path, name):
    source, fresh = model_with(DENSE[name]), model_with(torch.zeros_like(DENSE[name]))
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load_weights(fresh, tmp_path / "a.pt")
    assert torch.equal(bytes_of(fresh.x), bytes_of(source.x))
    text = describe(str(tmp_path / "a.pt"))
    assert f"x  (8,)  {name}" in text
    assert f"fingerprint: {Teacher(source).fingerprint()}" in text
    assert Teacher(source).fingerprint() in repr(Teacher(source))


@pytest.mark.parametrize("name", [*DENSE, *ODD])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*PyTorch API:UserWarning")
def test_a_teacher_that_holds_them_teaches(name):
    teacher = mlp(1)
    teacher.register_buffer("x", DENSE[name] if name in DENSE else odd(name))
    algorithm = Distillation(Teacher(teacher), KLDivergence(2.0))
    trainer = trainer_for(Classifier(mlp(0)), algorithm, max_duration="1ba")
    trainer.fit()
    trainer.close()
    assert Teacher(teacher).fingerprint() in repr(Teacher(teacher))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("place", ["model", "average"])
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*PyTorch API:UserWarning")
def test_a_file_that_holds_one_is_refused_by_name(tmp_path, kind, place):
    plain = model_with(torch.ones(4, 4))
    states = {"model": plain.state_dict(), "average": plain.state_dict()}
    states[place]["x"] = odd(kind)
    held = {"named_parameters_dict": states["average"], "named_buffers_dict": {}}
    ema = {"ema_weights_active": True, "ema_started": True, "ema_model": held}
    state = {"model": states["model"], "algorithms": [("EMA", ema)]}
    torch.save({"state": state}, tmp_path / "a.pt")
    said = r"its x is no dense tensor with values, but .*; "
    with pytest.raises(ValueError, match=f"the expert: .*{said}"):
        load_weights(plain, tmp_path / "a.pt", name="the expert", ema=place == "model")
    if place == "model":
        assert "its x is no dense tensor with values, but" in describe(str(tmp_path / "a.pt"))


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Sparse:UserWarning", "ignore:.*PyTorch API:UserWarning")
def test_a_model_that_no_file_fills_is_refused_by_name(tmp_path, kind):
    torch.save(model_with(torch.ones(4, 4)).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=rf"the expert: .*model's x is a {kind} tensor.*; load the"
    ):
        load_weights(model_with(odd(kind)), tmp_path / "a.pt", name="the expert")


@pytest.mark.parametrize("value", [300, -1])
def test_whole_numbers_that_have_no_room_are_refused(tmp_path, value):
    numbers = torch.tensor([1, value])
    torch.save(model_with(numbers).state_dict(), tmp_path / "a.pt")
    with pytest.raises(
        ValueError, match=r"its x \(torch.int64\) holds numbers that .*uint8 has no"
    ):
        load_weights(model_with(numbers.to(torch.uint8)), tmp_path / "a.pt")
    fresh = model_with(torch.zeros(2, dtype=torch.int16))
    load_weights(fresh, tmp_path / "a.pt")
    assert fresh.x.tolist() == [1, value]
