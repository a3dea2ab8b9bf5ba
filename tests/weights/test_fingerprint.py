"""What one model's letters tell from another's: everything, wherever it lies."""

import hashlib

import numpy as np
import pytest
import torch
from torch import nn

from composer_distill.weights import fingerprint as module
from composer_distill.weights.fingerprint import NO_WEIGHTS, fingerprint, fingerprint_of

COLUMNS, BLOCK = 64 * 2, 2**11 * 64 * 2  # of values of 4 bytes
LARGE = 4_000_000


def of(*tensors):
    return fingerprint_of(map(str, range(len(tensors))), lambda name: tensors[int(name)])


@pytest.fixture(scope="module")
def large():
    weight = torch.randn(LARGE, generator=torch.Generator().manual_seed(0))
    return weight, of(weight)


PLACES = [0, 1, COLUMNS - 1, COLUMNS, BLOCK - 1, 2 * BLOCK + 1, 3_141_592, LARGE - 1]


@pytest.mark.parametrize("place", PLACES)
def test_any_single_change_of_a_large_weight_is_seen(large, place):
    weight, mark = large
    bits = weight.view(torch.int32)
    changed = weight.clone()
    for change in (1, 1 << 15, 1 << 16, -(2**31)):  # the last bit of the mantissa to the sign
        changed.view(torch.int32)[place] = bits[place] ^ change
        assert of(changed) != mark


# In one word, one row, one column, one column of another block, and anywhere
PAIRS = [(0, 1), (1, 65), (5, COLUMNS + 5), (7, 3 * BLOCK + 7), (BLOCK, 2 * BLOCK), (1, LARGE - 1)]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.bool])
def test_permutations_of_rows_and_columns_are_seen(dtype):
    """Of ones and zeros, whose plain sums would all stay."""
    eye = torch.eye(256).to(dtype)
    permuted = [eye]
    for other in (4, 67, 131, 200):
        swapped = eye.clone()
        swapped[[3, other]] = eye[[other, 3]]
        permuted += [swapped, torch.cat([swapped, eye]), torch.cat([eye, swapped])]
    assert len(set(map(of, permuted))) == len(permuted)
    assert of(eye, permuted[1]) != of(permuted[1], eye)


def test_a_change_of_any_two_words_is_seen(monkeypatch):
    """By the argument that the folding rests on; small blocks, so that words meet at each level."""
    monkeypatch.setattr(module, "_BLOCK", 4)
    monkeypatch.setattr(module, "_SHORT", 512)
    rng = np.random.default_rng(0)
    words = rng.integers(-(2**62), 2**62, 64 * 40)
    before = list(module._folded(torch.from_numpy(words).view(torch.uint8)))
    for _ in range(500):
        one, other = rng.integers(0, len(words), 2)
        if rng.random() < 0.5:  # of one row, or of one column of one block
            other = one ^ rng.integers(1, 64) if rng.random() < 0.5 else one ^ 64 * rng.integers(4)
        change = np.int64(1) << np.int64(rng.integers(0, 64))
        changed = words.copy()
        with np.errstate(over="ignore"):
            changed[one] += change
            changed[other] -= change if other != one else 0
        assert list(module._folded(torch.from_numpy(changed).view(torch.uint8))) != before


def short(data):
    """Bytes, folded until they are short: from the words of ``docs/checkpoints.md``."""
    whole = len(data) // 512 * 512 if len(data) > 16384 else 0
    told = []
    if whole:
        rows = np.frombuffer(data[:whole], "<u8").reshape(-1, 64)
        factors = [pow(6364136223846793005, column + 1, 2**64) for column in range(64)]
        weighted = sum(np.uint64(f) * rows[:, column] for column, f in enumerate(factors))
        blocks = [rows[start : start + 2048].sum(0) for start in range(0, len(rows), 2048)]
        told = [*short(weighted.tobytes()), *short(np.concatenate(blocks).tobytes())]
    return [*told, data[whole:]]


def reference(*weights):
    """The same letters, in NumPy."""
    digest = hashlib.sha256()
    for name, weight in enumerate(weights):
        raw = weight.tobytes()
        digest.update(f"{name} {weight.shape} torch.{weight.dtype}\n{len(raw)}\n".encode())
        digest.update(b"".join(short(raw)))
    return digest.hexdigest()[:12]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_letters_are_those_of_the_rule(threads):
    rng = np.random.default_rng(0)
    weights = [
        rng.normal(size=(3, 5)).astype(np.float32),
        rng.normal(size=2_500_077).astype(np.float32),
        rng.integers(-128, 127, size=(70_001,), dtype=np.int8),
        rng.normal(size=5001),
    ]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert of(*map(torch.from_numpy, weights)) == reference(*weights)
    finally:
        torch.set_num_threads(before)


def test_large_weights_are_folded_a_segment_at_a_time(monkeypatch):
    weight = torch.arange(40_000)
    monkeypatch.setattr(module, "_SEGMENT", 2**17)
    pieces = list(module._folded(weight.view(torch.uint8)))
    raw = weight.numpy().tobytes()
    segments = [raw[start : start + 2**17] for start in range(0, len(raw), 2**17)]
    assert pieces == [b"".join(short(segment)) for segment in segments]


@pytest.mark.parametrize("rows", [1, 7, 2048, 5000])
def test_a_device_adds_up_what_a_cpu_does(rows, monkeypatch):
    """The operations for a GPU, on a CPU."""
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 1000)
    words = torch.randint(-(2**62), 2**62, (rows, 64))
    on_cpu = module._sums(words)
    monkeypatch.setattr(module, "_add_up_on_cpu", module._add_up)
    assert all(map(torch.equal, module._sums(words), on_cpu))


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


@pytest.mark.filterwarnings("ignore")  # of torch, that its quantisation moves elsewhere
@pytest.mark.parametrize("layer", [nn.Linear, nn.LSTM, nn.GRUCell])
@pytest.mark.parametrize("beside", [True, False], ids=["beside others", "alone"])
def test_weights_that_quantised_layers_of_torch_pack_are_read(layer, beside):
    def quantised(name=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(layer(4, 4), *[nn.LayerNorm(4)] * beside)
        if name is not None:
            with torch.no_grad():
                net[0].get_parameter(name).view(-1)[3] += 0.05
        return fingerprint(torch.ao.quantization.quantize_dynamic(net, {layer}))

    names = [name for name, _ in layer(4, 4).named_parameters()]
    assert quantised() == quantised() != NO_WEIGHTS
    assert len({quantised(), *map(quantised, names)}) == len(names) + 1


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


def test_memory_stays_small(large):
    """Nothing near the size of a weight is made on the way."""
    made, own = [], large[0].untyped_storage().data_ptr()

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.untyped_storage().data_ptr() != own:
                made.append(result.nbytes)
            return result

    with Watch():
        of(large[0])
    assert 0 < max(made) <= large[0].nbytes / 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_letters_of_the_cpu(large):
    weight, mark = large
    assert of(weight.cuda()) == mark
    both = [weight, torch.ones(3, dtype=torch.bfloat16)]
    assert of(both[0].cuda(), both[1]) == of(*both)
