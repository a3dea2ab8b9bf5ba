"""What one model's letters tell from another's: everything, wherever it lies."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from composer_distill.weights import fingerprint as module
from composer_distill.weights.fingerprint import NO_WEIGHTS, fingerprint, fingerprint_of

LANES = 2**18
LARGE = 4_000_000


def of(*tensors):
    return fingerprint_of(map(str, range(len(tensors))), lambda name: tensors[int(name)])


@pytest.fixture(scope="module")
def large():
    weight = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    return weight, of(weight)


PLACES = [0, 1, LANES - 1, LANES, 2 * LANES + 1, 3_141_592, LARGE - 1]


@pytest.mark.parametrize("place", PLACES)
def test_any_single_change_of_a_large_weight_is_seen(large, place):
    weight, mark = large
    bits = weight.view(torch.int32)
    changed = weight.clone()
    for change in (1, 1 << 15, 1 << 16, -(2**31)):  # the last bit of the mantissa to the sign
        changed.view(torch.int32)[place] = bits[place] ^ change
        assert of(changed) != mark


PAIRS = [(0, 1), (0, LANES), (5, LANES + 5), (LANES, 2 * LANES), (7, 3 * LANES + 7), (1, LARGE - 1)]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("negated", [False, True])
def test_any_two_values_that_change_places_are_seen(large, pair, negated):
    weight = large[0].clone()
    one, other = pair
    if negated:  # two values that differ by their highest bit alone
        weight[other] = -weight[one]
    moved = weight.clone()
    moved[[one, other]] = weight[[other, one]]
    assert of(moved) != of(weight)


def test_changes_of_all_values_are_seen(large):
    weight, mark = large
    others = [-weight, weight.roll(1), weight.flip(0), weight.view(-1, 2).flip(1).reshape(-1)]
    marks = {mark, *map(of, others)}
    assert len(marks) == len(others) + 1


def test_permutations_of_rows_and_columns_are_seen():
    eye = torch.eye(1024)
    swapped = eye.clone()
    swapped[[3, 700]] = eye[[700, 3]]
    assert of(eye) != of(swapped)
    assert of(eye, swapped) != of(swapped, eye)


def reference(*weights):
    """The same letters, from the words of ``docs/checkpoints.md`` and in NumPy."""
    digest, row, rows = hashlib.sha256(), np.zeros(0, np.uint32), 0
    for name, weight in enumerate(weights):
        raw = weight.tobytes()
        kind = f"torch.{weight.dtype}"
        digest.update(f"{name} {weight.shape} {kind}\n{len(raw)}\n".encode())
        whole = len(raw) // 4 * 4
        pieces = [
            raw[start : min(start + 4 * LANES, whole)] for start in range(0, whole, 4 * LANES)
        ]
        pieces += [raw[whole:].ljust(4, b"\0")] if whole < len(raw) else []
        for piece in pieces:
            words = np.frombuffer(piece, np.uint32)
            row = np.pad(row, (0, max(0, len(words) - len(row))))
            folded, factor = row[: len(words)].copy(), 1664525
            if rows % 2:
                words, folded, factor = words.view(np.uint16), folded.view(np.uint16), 25173
            added = (words.astype(np.int64) + factor * folded.astype(np.int64)).astype(words.dtype)
            row[: len(piece) // 4] = np.roll(added, 1001).view(np.uint32)
            rows += 1
    digest.update(row.tobytes())
    return digest.hexdigest()[:12]


def test_the_letters_are_those_of_the_rule():
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(size=(3, 5)).astype(np.float32),
        rng.normal(size=2 * LANES + 77).astype(np.float32),
        rng.integers(-128, 127, size=(7,), dtype=np.int8),
        rng.normal(size=5001),
    ]
    assert of(*map(torch.from_numpy, weights)) == reference(*weights)


KINDS = {
    "float64": lambda: torch.randn(9).double(),
    "bfloat16": lambda: torch.randn(9).bfloat16(),
    "float8": lambda: torch.randn(9).to(torch.float8_e4m3fn),
    "float8 scale": lambda: torch.ones(()).to(torch.float8_e8m0fnu),
    "complex": lambda: torch.randn(9, dtype=torch.complex64).conj(),
    "bool": lambda: torch.randn(9) > 0,
    "uint16": lambda: torch.arange(9).to(torch.uint16),
    "uint64": lambda: torch.arange(9).to(torch.uint64),
    "bits": lambda: torch.arange(9, dtype=torch.uint8).view(torch.bits8),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed rows": lambda: torch.eye(3).to_sparse_csr(),
    "compressed columns": lambda: torch.eye(3).to_sparse_csc(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor(
        [torch.ones(2), torch.ones(3)], layout=torch.jagged
    ),
    "quantised": lambda: torch.quantize_per_tensor(torch.randn(9), 0.1, 0, torch.qint8),
    "quantised by channel": lambda: torch.quantize_per_channel(
        torch.randn(3, 3), torch.ones(3), torch.zeros(3, dtype=torch.long), 0, torch.qint8
    ),
    "mkldnn": lambda: torch.randn(3, 3).to_mkldnn(),
    "empty": lambda: torch.ones(0),
    "scalar": lambda: torch.ones(()),
    "odd start": lambda: torch.arange(8, dtype=torch.int16)[1:],
}


@pytest.mark.filterwarnings("ignore:Sparse C", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor_has_letters(kind):
    tensor = KINDS[kind]()
    assert of(tensor) == of(tensor.clone())
    assert of(tensor) != of(torch.ones(2, 2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("kind", ["float8", "complex", "bool", "sparse", "quantised", "jagged"])
def test_every_kind_of_tensor_is_read_to_its_last_value(kind):
    tensor = KINDS[kind]()
    values = {
        "sparse": lambda: tensor._values(),
        "quantised": lambda: tensor.int_repr(),
        "jagged": lambda: tensor.values(),
    }.get(kind, lambda: tensor)()
    before = of(tensor)
    if kind == "quantised":
        other = torch._make_per_tensor_quantized_tensor(values + 1, 0.1, 0)
        assert of(other) != before
        assert of(torch._make_per_tensor_quantized_tensor(values, 0.2, 0)) != before
        return
    values.view(-1).resolve_conj().view(torch.uint8)[-1] ^= 1
    if kind == "complex":
        tensor = tensor.resolve_conj().clone()
        tensor[-1] += 1
    assert of(tensor) != before


def test_names_shapes_types_and_layouts():
    weight = torch.arange(6.0).view(2, 3)
    assert of(weight) == of(weight.t().contiguous().t())
    assert of(weight) == of(torch.stack([weight, weight], -1)[..., 0])
    marks = {
        of(weight),
        of(weight.view(3, 2)),
        of(weight.t()),
        of(weight.view(torch.int32)),
        of(weight, weight),
    }
    assert len(marks) == 5


class Around(torch.Tensor):
    """A tensor without storage of its own, as quantised weights of libraries are."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_, self.scale_ = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale_"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].data_, args[0].scale_)
        raise NotImplementedError(function)


def test_a_tensor_around_others_is_read_through_them():
    data, scale = torch.arange(4, dtype=torch.int8), torch.ones(1)
    marks = {of(Around(data, scale)), of(Around(data + 1, scale)), of(Around(data, scale + 1))}
    assert len(marks) == 3


class Closed(Around):
    __tensor_flatten__ = property()  # hasattr says no


def test_a_tensor_whose_bytes_cannot_be_read_is_refused_by_name():
    with pytest.raises(ValueError, match=r"its weight '0' is a Closed of torch.float32"):
        of(Closed(torch.ones(2), torch.ones(1)))


def test_models_without_weights():
    assert fingerprint(nn.Identity()) == NO_WEIGHTS

    class Told(nn.Module):
        def __init__(self, state):
            super().__init__()
            self.state = state

        def get_extra_state(self):
            return self.state

    assert fingerprint(Told({"a": [1, "b"]})) != fingerprint(Told({"a": [1, "c"]}))
    assert len(fingerprint(Told({"a": [1, "b"]}))) == 12
    assert fingerprint(Told(object())) == NO_WEIGHTS


def test_memory_stays_that_of_one_row(large):
    """Nothing of the size of a weight is made on the way."""
    made, own = [], large[0].untyped_storage().data_ptr()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != own:
                made.append(result.nbytes)
            return result

    with Watch():
        of(large[0])
    assert max(made) <= 4 * module._LANES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_letters_of_the_cpu(large):
    weight, mark = large
    assert of(weight.cuda()) == mark
    both = [weight, torch.ones(3, dtype=torch.bfloat16)]
    assert of(both[0].cuda(), both[1]) == of(*both)
