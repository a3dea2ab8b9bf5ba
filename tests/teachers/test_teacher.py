"""The teacher's options, one by one."""

import collections
import re

import pytest
import torch
from torch import nn

from composer_distill.teachers import Teacher


def call(model, batch):
    return model(batch)


def extract(raw):
    return raw


def test_weights_are_loaded_at_construction(zoo, trained):
    model, folder = trained
    teacher = Teacher(zoo.classifier(), checkpoint=folder / "latest-rank0.pt")
    assert zoo.same(teacher.model, model)


def test_construction_fails_on_a_missing_file_by_name(zoo):
    with pytest.raises(FileNotFoundError, match="teacher 'big': "):
        Teacher(zoo.net(), checkpoint="nowhere.pt", name="big")
    with pytest.raises(FileNotFoundError, match=r"teacher \(Sequential\): "):
        Teacher(zoo.net(), checkpoint="nowhere.pt")
    with pytest.raises(FileNotFoundError, match=r"^teacher 0 \(Net\): "):
        Teacher(zoo.net(), checkpoint="nowhere.pt", name="teacher 0 (Net)")


def test_construction_draws_nothing(zoo, trained):
    _, folder = trained
    model = zoo.classifier()
    before = torch.get_rng_state()
    Teacher(model, checkpoint=folder / "latest-rank0.pt")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "1", True, None])
def test_weight_is_checked(weight):
    with pytest.raises(ValueError, match=r"teacher 'x': weight must be a positive finite number"):
        Teacher(nn.Linear(1, 1), name="x", weight=weight)


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "4"])
def test_microbatch_size_is_checked(size):
    with pytest.raises(ValueError, match="microbatch_size must be a whole number"):
        Teacher(nn.Linear(1, 1), microbatch_size=size)


@pytest.mark.parametrize("argument", ["input_fn", "output_fn"])
def test_functions_are_checked(argument):
    with pytest.raises(TypeError, match=f"{argument} must be callable, but is a int"):
        Teacher(nn.Linear(1, 1), **{argument: 3})


@pytest.mark.parametrize("dtype", [torch.int64, "bfloat16", float])
def test_dtype_is_checked(dtype):
    with pytest.raises(TypeError, match=r"dtype must be a floating-point torch\.dtype"):
        Teacher(nn.Linear(1, 1), dtype=dtype)


@pytest.mark.parametrize("model", [None, "weights.pt", nn.Linear, {}])
def test_the_model_is_checked(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        Teacher(model)


def test_freeze_and_eval_at_each_use(zoo):
    teacher = Teacher(zoo.net())
    teacher.freeze()
    assert not any(p.requires_grad for p in teacher.model.parameters())
    teacher.model.train()
    modes = []
    teacher.forward(torch.zeros(2, 16), lambda m, b: modes.append(m.training) or m(b), extract)
    assert modes == [False]


def test_a_teacher_is_no_module():
    holder = nn.Module()
    holder.teacher = Teacher(nn.Linear(1, 1))
    assert list(holder.parameters()) == []


def test_input_fn_cannot_change_the_callers_batch():
    batch = {"x": torch.ones(2, 1), "nested": {"y": [1, 2]}, "labels": torch.zeros(2)}

    def strip(view):
        view.pop("labels")
        view["nested"]["y"].append(3)
        return view["x"]

    teacher = Teacher(nn.Linear(1, 1), input_fn=strip)
    teacher.forward(batch, call, extract)
    assert set(batch) == {"x", "nested", "labels"}
    assert batch["nested"] == {"y": [1, 2]}


def test_a_call_cannot_change_the_callers_batch():
    batch = {"x": torch.ones(2, 1), "labels": torch.zeros(2)}
    Teacher(nn.Linear(1, 1)).forward(batch, lambda m, b: b.pop("labels") + m(b["x"])[0], extract)
    assert "labels" in batch


def test_output_fn_gets_the_raw_output_before_the_logits_are_taken():
    teacher = Teacher(nn.Identity(), output_fn=lambda raw: {"logits": raw["all"][:, :2]})
    answer = teacher.forward(
        torch.arange(6.0).reshape(2, 3), lambda m, b: {"all": m(b)}, lambda raw: raw["logits"]
    )
    assert answer.tolist() == [[0.0, 1.0], [3.0, 4.0]]


def batches():
    from transformers import BatchEncoding

    x, y = torch.randn(5, 16), torch.arange(5)
    pair = collections.namedtuple("pair", "x y")
    return {
        "tensor": (x, lambda b: b),
        "tuple": ((x, y), lambda b: b[0]),
        "list": ([x, y], lambda b: b[0]),
        "named tuple": (pair(x, y), lambda b: b.x),
        "dict": (
            {"x": x, "y": y, "names": list("abcde"), "scale": 2, "one": x[:1]},
            lambda b: b["x"],
        ),
        "encoding": (BatchEncoding({"x": x, "y": y}), lambda b: b["x"]),
        "nested": ({"in": (x, y)}, lambda b: b["in"][0]),
    }


@pytest.mark.parametrize("kind", list(batches()))
@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_microbatches_give_the_same_answer(zoo, kind, size):
    batch, pick = batches()[kind]
    model = zoo.net()
    sizes = []

    def run(model, view):
        assert type(view) is type(batch)
        sizes.append(len(pick(view)))
        return {"logits": model(pick(view))}

    with torch.no_grad():
        whole = Teacher(model).forward(batch, run, lambda raw: raw["logits"])
        pieces = Teacher(model, microbatch_size=size).forward(batch, run, lambda r: r["logits"])
    torch.testing.assert_close(pieces, whole)
    assert sizes == [5] + [size] * (5 // size) + ([5 % size] if 5 % size else [])


def test_pieces_keep_what_belongs_to_each_sample():
    seen = []

    def run(model, view):
        seen.append((view["y"].tolist(), view["names"], view["scale"], view["one"].shape[0]))
        return view["x"]

    Teacher(nn.Identity(), microbatch_size=2).forward(batches()["dict"][0], run, extract)
    assert seen == [
        ([0, 1], ["a", "b"], 2, 1),
        ([2, 3], ["c", "d"], 2, 1),
        ([4], ["e"], 2, 1),
    ]


@pytest.mark.parametrize("batch", [{"x": torch.ones(4, 1), "y": torch.ones(3)}, {"x": 3}])
def test_batches_that_cannot_be_cut(batch):
    with pytest.raises(ValueError, match="microbatch_size needs a batch whose tensors agree"):
        Teacher(nn.Identity(), microbatch_size=2).forward(batch, call, extract)


def test_hugging_face_outputs_in_pieces(zoo):
    model = zoo.bert()
    ids = torch.randint(0, 50, (5, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    run = lambda model, view: model(**view)  # noqa: E731
    with torch.no_grad():
        whole = Teacher(model).forward(batch, run, lambda out: out.logits)
        pieces = Teacher(model, microbatch_size=2).forward(batch, run, lambda out: out.logits)
    torch.testing.assert_close(pieces, whole)


def test_dtype_is_that_of_weights_and_forward(zoo):
    teacher = Teacher(zoo.net(), dtype=torch.bfloat16)
    teacher.place(torch.device("cpu"))
    batch = (torch.randn(3, 16), torch.arange(3))
    seen = []

    def run(model, view):
        seen.append((view[0].dtype, view[1].dtype))
        return model(view[0])

    assert teacher.forward(batch, run, extract).dtype == torch.bfloat16
    assert seen == [(torch.bfloat16, torch.int64)]
    assert batch[0].dtype == torch.float32
    assert teacher.model[1].weight.dtype == torch.bfloat16


def test_compiled_in_place_after_loading(zoo, trained):
    _, folder = trained
    teacher = Teacher(
        zoo.net(), checkpoint=folder / "latest-rank0.pt", compile={"backend": "eager"}
    )
    keys, mark = list(teacher.model.state_dict()), teacher.fingerprint()
    x = torch.randn(4, 16)
    with torch.no_grad():
        before = teacher.forward(x, call, extract)
        teacher.place(torch.device("cpu"))
        compiled = teacher.model._compiled_call_impl
        teacher.place(torch.device("cpu"))
        assert teacher.model._compiled_call_impl is compiled
        torch.testing.assert_close(teacher.forward(x, call, extract), before)
    assert list(teacher.model.state_dict()) == keys
    assert teacher.fingerprint() == mark


def test_offloaded_weights_come_for_each_batch_and_go(zoo, monkeypatch):
    teacher = Teacher(zoo.net(), offload=True)
    teacher.freeze()
    teacher.place(torch.device("cpu"))
    home = [tensor.data_ptr() for tensor in teacher.model.parameters()]
    moved = []
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **k: moved.append(a) or self.clone())

    def run(model, view):
        assert [tensor.data_ptr() for tensor in model.parameters()] != home
        raise KeyError("whatever happens")

    with pytest.raises(KeyError):
        teacher.forward(torch.zeros(2, 16), run, extract)
    assert [tensor.data_ptr() for tensor in teacher.model.parameters()] == home
    assert moved[0] == (torch.device("cpu"),)


def test_offloading_answers_the_same(zoo):
    net, x = zoo.net(), torch.randn(3, 16)
    with torch.no_grad():
        plain = Teacher(net).forward(x, call, extract)
        assert torch.equal(Teacher(net, offload=True).forward(x, call, extract), plain)


def test_to_host_is_logged(zoo, caplog):
    teacher = Teacher(zoo.net(), name="big")
    with caplog.at_level("INFO"):
        teacher.to_host()
    assert "teacher 'big' was moved to host memory" in caplog.text


def test_repr_is_one_line(zoo, trained):
    _, folder = trained
    path = folder / "latest-rank0.pt"
    teacher = Teacher(zoo.net(), checkpoint=path)
    start = f"Teacher(Sequential, 188 parameters, float32, from {path}, fingerprint "
    assert re.fullmatch(re.escape(start) + r"[0-9a-f]{12}\)", repr(teacher))
    assert "from its own weights" in repr(Teacher(zoo.net()))
    assert "no weights" in repr(Teacher(nn.Identity()))


def test_fingerprint_tells_weights_names_and_shapes_apart():
    layer = nn.Linear(2, 3)
    mark = Teacher(layer).fingerprint()
    assert Teacher(layer).fingerprint() == mark
    assert Teacher(nn.Linear(2, 3)).fingerprint() != mark
    turned = nn.Linear(3, 2)
    turned.weight.data = layer.weight.data.reshape(2, 3)
    turned.bias.data = layer.bias.data
    assert Teacher(turned).fingerprint() != mark
    assert Teacher(nn.Sequential(layer)).fingerprint() != mark


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64]
)
def test_fingerprint_of_any_type(dtype):
    holder = nn.Module()
    holder.register_buffer("b", torch.ones(3, 4).to(dtype).t())
    holder.register_buffer("empty", torch.ones(0, dtype=dtype))
    holder.register_buffer("scalar", torch.ones((), dtype=dtype))
    assert len(Teacher(holder).fingerprint()) == 12


class AnswersInPlace(nn.Module):
    """Gives each answer in the same memory, as a replayed CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.memory = torch.empty(8, 3)

    def forward(self, inputs):
        return self.memory[: len(inputs)].copy_(inputs)


def test_pieces_answered_in_the_same_memory_are_told_apart():
    inputs = torch.randn(5, 3)
    teacher = Teacher(AnswersInPlace(), microbatch_size=2)
    answers = teacher.forward(inputs, lambda model, batch: model(batch), lambda logits: logits)
    assert torch.equal(answers, inputs)
