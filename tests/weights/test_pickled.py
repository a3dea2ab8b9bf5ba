"""The machine that reads pickles: what it makes is what was pickled, and nothing else is done."""

import collections
import contextlib
import io
import json
import pathlib
import pickle
import resource
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from composer_distill.teachers import load_weights
from composer_distill.weights.inspection import REFUSED, describe
from composer_distill.weights.pickled import arrays, opcodes, tensors
from composer_distill.weights.pickles import read_pickled

PLAIN = {
    "numbers": [0, 255, 65535, -1, 2**31, -(2**63), 2**200, 0.1, float("inf"), True, None],
    "texts": ["", "é" * 300, "\ud800", "🙂"],
    "bytes": [b"", b"x" * 300],
    "nested": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {"a": {1: {2.5: [{None: ()}]}}}),
    ("a", 1): {("b", 2.0): "tuples as keys"},
}


NEW_TYPES = (torch.float8_e4m3fn, torch.uint16)


def text(word):
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def plant(path, raw, around=None):
    """Write a checkpoint in whose place of a mark some opcodes stand; its value must be one."""
    buffer = io.BytesIO()
    torch.save(around or {"state": {"model": {"w": torch.zeros(1)}, "planted": "@@"}}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for each in old.infolist():
            new.writestr(each.filename, old.read(each).replace(text("@@"), raw))


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data_comes_back_as_it_was(protocol):
    sets = {"sets": [{1, "a"}, frozenset({2.5}), set()]} if protocol > 3 else {}
    data = pickle.dumps(PLAIN | sets, protocol)
    assert opcodes.read_bytes(data, tensors.find) == PLAIN | sets


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_comes_back_as_torch_reads_it(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    found = {
        "view": base[1:, ::2],
        "transposed": base.T,
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 3),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
        "parameter": nn.Parameter(torch.randn(2)),
        "types": [torch.ones(2, dtype=kind) for kind in (torch.bool, torch.bfloat16, torch.int8)],
        # torch itself cannot read these from its old format
        "new types": [torch.ones(2).to(kind) for kind in NEW_TYPES] if zipped else [],
        "beside": [torch.float32, torch.Size([1, 2]), torch.strided, 1 + 2j, bytearray(b"x")],
        "ordered": collections.OrderedDict(a=1),
        "counter": collections.Counter("aab"),
    }
    torch.save(found, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    ours = read_pickled(tmp_path / "a.pt", mmap=zipped)
    theirs = torch.load(tmp_path / "a.pt", weights_only=True)
    assert ours.keys() == theirs.keys()
    same(ours, theirs)


def same(one, other):
    if isinstance(other, torch.Tensor):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        bits = [
            t.detach().resolve_conj().contiguous().flatten().view(torch.uint8) for t in (one, other)
        ]
        assert torch.equal(*bits)
    elif isinstance(other, dict):
        for key in other:
            same(one[key], other[key])
    elif isinstance(other, list):
        for pair in zip(one, other, strict=True):
            same(*pair)
    else:
        assert one == other


def test_two_names_of_one_tensor_stay_one(tmp_path):
    weight = torch.randn(3)
    torch.save({"a": weight, "b": weight[1:]}, tmp_path / "a.pt")
    found = read_pickled(tmp_path / "a.pt", mmap=True)
    assert found["a"].data_ptr() + 4 == found["b"].data_ptr()


@pytest.mark.parametrize("kind", sorted(arrays.PLAIN))
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("fortran", "CF")
def test_arrays_of_plain_numbers(kind, order, fortran):
    values = np.arange(6).reshape(2, 3).astype(order + kind, order=fortran)
    record = opcodes.read_bytes(pickle.dumps(values, 2), tensors.find)
    assert record.path.endswith("_reconstruct")  # a stand-in, until it is asked for
    assert np.array_equal(arrays.array(record), values)
    assert opcodes.read_bytes(pickle.dumps(values[1, 2], 2), tensors.find) == values[1, 2].item()


@pytest.mark.parametrize("values", [np.array([object()]), np.zeros(2, "f4,i4"), np.array(["a"])])
def test_arrays_of_anything_else_are_never_made(values):
    record = arrays.Record("numpy._core.multiarray._reconstruct", (), values.__reduce__()[2])
    with pytest.raises(ValueError, match="NumPy"):
        arrays.array(record)


def doubled(innermost, tuples=False):
    for _ in range(40):
        innermost = (innermost, innermost) if tuples else [innermost, innermost]
    return innermost


def dtype(code):
    return b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R"


POINTERS = (
    dtype("u4") + b"(J\x03\x00\x00\x00" + text("<") + b"(" + dtype("O8") + b"(K\x04ttNNJ\xff\xff"
    b"\xff\xffJ\xff\xff\xff\xffK\x01tb"
)
KEY = pickle.dumps(doubled("a", tuples=True), 2)[2:-1]

SMALL = {
    "a list doubled 40 times": pickle.dumps(doubled(["a"]), 2)[2:-1],
    "a dict doubled 40 times": b"}q\x01" + b"".join(
        b"}q" + bytes([n + 1]) + b"(K\x00h" + bytes([n]) + b"K\x01h" + bytes([n]) + b"u"
        for n in range(1, 41)
    ),
    "a list filled after it was shared": b"]q\x01" + b"0".join(
        b"]q" + bytes([n + 1]) + b"(h" + bytes([n]) + b"h" + bytes([n]) + b"e" for n in range(1, 41)
    ) + b"0h\x01(" + b"K\x00" * 10 + b"e0h)",
    "a tuple that hashes for ever": b"}" + KEY + b"K\x00s",
    "a set of it": b"\x8f(" + KEY + b"\x90",
    "a frozen set of it": b"(" + KEY + b"\x91",
    "300,000 nested tuples": b"(" * 300_000 + b")" + b"t" * 300_000,
    "nested in one another": b")" + b"\x85" * 100_000,
    "nested in one another as a key": b"})" + b"\x85" * 100_000 + b"Ns",
    "a value that holds itself": b"]q\x01h\x01a",
    "400,000 sets": b"(" + b"\x8f" * 400_000 + b"l",
    "keys that collide": b"}(" + b"".join(
        b"\x8a\x0b" + ((2**61 - 1) * n).to_bytes(11, "little") + b"N" for n in range(1, 20_000)
    ) + b"u",
    "a number of a million digits": b"\x8b" + struct.pack("<I", 500_000) + b"\x01" * 500_000,
    "text of four gigabytes": b"X\xff\xff\xff\xff",
    "bytes of an exabyte": b"\x8e" + struct.pack("<Q", 1 << 60),
    "pointers": b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n(K\x00t" + text("b")
    + b"\x87R(K\x01(K\x02t" + POINTERS + b"\x89" + text("A" * 8) + b"tb",
    "the state of a class": b"cnumpy\nndarray\nN}" + text("x") + b"Ns\x86b",
    "a state twice": dtype("u4") + b"(K\x03NNNNtb(K\x03NNNNtb",
    "a call of a list": b"]\x85)R",
    "one list made a dict again and again": b"](K\x00K\x00\x86q\x000" + b"h\x00" * 100_000
    + b"e\x85q\x01ccollections\nOrderedDict\nq\x020" + b"h\x02h\x01R0" * 1000,
    "one text encoded again and again": b"](c_codecs\nencode\nq\x000" + text("a" * 300_000)
    + b"q\x01h\x01\x85q\x0200" + b"h\x00h\x02R" * 5000 + b"e",
    "an unknown persistent id": b"K\x00Q",
    "an extension": b"\x82\x01",
    "a class by name": b"cpathlib\nPosixPath\n)\x81",
    "a name without an end": b"c" + b"a" * 100_000,
}  # fmt: skip


@contextlib.contextmanager
def peak_of_memory():
    peak = []
    tracemalloc.start()
    try:
        yield peak
    finally:
        peak.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()


@pytest.mark.parametrize("name", SMALL)
def test_small_files_that_kill(tmp_path, name):
    """Each ends in an error that says so, soon and within 100 MB; inspect says it too."""
    path = tmp_path / "a.pt"
    plant(path, SMALL[name])
    with peak_of_memory() as peak:
        with pytest.raises(ValueError, match=r"^the expert: .*a\.pt: it ") as caught:
            load_weights(nn.Linear(1, 1), path, name="the expert")
        assert len(str(caught.value)) < 600
        assert REFUSED in describe(str(path))
    assert peak[0] < 100e6


def test_a_memo_index_of_a_hundred_million_takes_no_memory(tmp_path):
    plant(tmp_path / "a.pt", text("x") + b"r\xff\xff\xff\x05")
    with peak_of_memory() as peak:
        describe(str(tmp_path / "a.pt"))
    assert peak[0] < 10e6


def test_an_expanded_tensor_is_not_copied_to_be_told_of(tmp_path):
    torch.save({"weight": torch.ones(2, 1).expand(2, 2**29)}, tmp_path / "a.pt")
    assert "its weight is torch.Size([2, 536870912]), far more than" in describe(
        str(tmp_path / "a.pt")
    )


def test_a_million_empty_tensors(tmp_path):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"w{n}": entry for n in range(250_000)}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ValueError, match="it names more than 200,000 tensors"):
        load_weights(nn.Linear(1, 1), path)


def test_a_piece_of_a_sharded_weight_has_the_bytes_that_it_claims(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"weight": torch.ones(2, 1).expand(2, 2**20)}, checkpoint_id=tmp_path)
    shard = tmp_path / "__0_0.distcp"
    buffer = io.BytesIO()
    torch.save(torch.ones(2, 1).expand(2, 2**20), buffer)
    shard.write_bytes(buffer.getvalue())
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    for place in metadata.storage_data.values():
        place.offset, place.length = 0, len(buffer.getvalue())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "its piece of weight claims to be more" in describe(str(tmp_path))


def test_classes_of_the_process_stay_as_they_are(tmp_path):
    """Slot state on an allowed class would be setattr."""
    evil = b"\x80\x02cpathlib\nPosixPath\nN}" + text("is_file") + b"ctorch\nSize\ns\x86b."
    (tmp_path / ".metadata").write_bytes(evil)
    assert "it changes pathlib.PosixPath, which is no data" in describe(str(tmp_path))
    assert pathlib.Path(__file__).is_file() is True


@pytest.mark.parametrize("damage", ["missing", "twice", "longer"])
def test_the_old_format_never_gives_memory_that_nothing_filled(tmp_path, damage):
    """torch.load takes what stood in memory for the weights of a storage without bytes."""
    torch.save(
        {"a": torch.ones(2), "b": torch.ones(2)},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=False,
    )
    data = (tmp_path / "a.pt").read_bytes()
    keys = data[data.rindex(b"\x80\x02]") :]
    found = pickle.loads(keys)
    changed = {"missing": found[:1], "twice": found[:1] * 2, "longer": found}[damage]
    end = pickle.dumps(changed, 2)
    rest = keys[len(pickle.dumps(found, 2)) :]
    rest = b"\x03" + rest[1:] if damage == "longer" else rest
    (tmp_path / "a.pt").write_bytes(data[: -len(keys)] + end + rest)
    with pytest.raises(ValueError, match="cannot be read as tensors and plain data"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt")


@pytest.mark.parametrize("how", ["negated", "of another type"])
def test_an_expanded_tensor_is_not_filled_in(tmp_path, how):
    """A few bytes that say that they are 2 GB, told to be computed with."""
    marks = b"}" + text("neg") + b"\x88s" if how == "negated" else b""
    number = b"\x8a\x04" + (2**29).to_bytes(4, "little")
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
        + text("0") + text("cpu") + b"K\x01tQK\x00" + number + b"\x85K\x00\x85\x89"
        + b"ccollections\nOrderedDict\n)R" + marks + b"tR"
    )  # fmt: skip
    if how != "negated":
        make = b"ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n("
        tensor = make + tensor + b"ctorch\nfloat64\n" + text("cpu") + b"\x89tR"
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("a/data.pkl", b"\x80\x02}" + text("weight") + tensor + b"s.")
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")
        file.writestr("a/data/0", struct.pack("<f", 1.0))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert REFUSED in describe(str(tmp_path / "a.pt"))
    with pytest.raises(ValueError, match="the expert"):
        load_weights(nn.Linear(1, 1), tmp_path / "a.pt", name="the expert")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
