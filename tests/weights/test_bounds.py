"""What real checkpoints take of what they may take, and what is not done again and again."""

import dataclasses
import gc
import json
import pickle
import warnings
import zipfile

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.planner import (
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import WriteResult

from composer_distill.weights.pickled import machine, opcodes, reach, tensors
from composer_distill.weights.pickled.machine import BYTES_A_BYTE, Machine
from composer_distill.weights.pickles import read_pickled
from composer_distill.weights.sharded import open_sharded


@pytest.fixture
def machines(monkeypatch):
    """The machines that read pickles meanwhile."""
    made = []

    class Watched(Machine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(opcodes, "Machine", Watched)
    return made


def llama(layers, width=8192, inner=28_672, words=128_256, heads=1024):
    shapes = {"embed_tokens.weight": (words, width), "norm.weight": (width,)}
    for layer in range(layers):
        start = f"layers.{layer}."
        attention = {"q": (width, width), "k": (heads, width), "v": (heads, width)}
        shapes |= {f"{start}self_attn.{n}_proj.weight": size for n, size in attention.items()}
        shapes |= {f"{start}self_attn.o_proj.weight": (width, width)}
        inside = {"gate": (inner, width), "up": (inner, width), "down": (width, inner)}
        shapes |= {f"{start}mlp.{name}_proj.weight": size for name, size in inside.items()}
        shapes |= {f"{start}{n}_layernorm.weight": (width,) for n in ("input", "post_attention")}
    return {f"model.{name}": size for name, size in shapes.items()}


def piece(name, shape, rank, ranks):
    """What FSDP2 leaves a rank of a weight: a share of its rows."""
    rows = -(-shape[0] // ranks)
    start = min(shape[0], rank * rows)
    offsets = torch.Size((start, *[0] * (len(shape) - 1)))
    sizes = torch.Size((min(rows, shape[0] - start), *shape[1:]))
    data = TensorWriteData(
        metadata.ChunkStorageMetadata(offsets, sizes),
        metadata.TensorProperties(dtype=torch.float32),
        torch.Size(shape),
    )
    return WriteItem(metadata.MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data)


def write_metadata(folder, shapes, ranks):
    """The ``.metadata`` that so many ranks write together, by torch's planner and writer."""
    whole = {f"state.model.{name}": shape for name, shape in shapes.items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        start = "state.optimizers.AdamW.state"
        whole |= {f"{start}.{name}.{moment}": shape for name, shape in shapes.items()}
    paths = {name: tuple(name.split(".", 2)) for name in whole}
    plans = [
        SavePlan([piece(name, shape, rank, ranks) for name, shape in whole.items()])
        for rank in range(ranks)
    ]
    plans, found = create_default_global_save_plan(plans)
    writer = filesystem.FileSystemWriter(folder)
    writer.set_up_storage_writer(True)
    results = [
        [
            WriteResult(i.index, 9, filesystem._StorageInfo(f"__{rank}_0.distcp", 9 * n, 9))
            for n, i in enumerate(plan.items)
        ]
        for rank, plan in enumerate(plans)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer.finish(dataclasses.replace(found, planner_data=paths), results)


def test_what_many_ranks_write_of_a_large_model_is_read(tmp_path, machines):
    """A bound in proportion: of 64 ranks and 80 layers it is the same share (in machine.py)."""
    shapes = llama(layers=8)
    write_metadata(tmp_path, shapes, ranks=32)
    size = (tmp_path / ".metadata").stat().st_size
    found = open_sharded(tmp_path)
    assert {name: spec.shape for name, spec in found.specs.items()} == shapes
    assert 20 < machines[0].spent / size < BYTES_A_BYTE / 2


def test_a_run_with_adam_and_a_tokenizer_is_read(trained_bert, tmp_path, machines):
    _, folder = trained_bert
    found = torch.load(folder / "latest-rank0.pt", weights_only=False)
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(1000)))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    words = {f"word{n}": n for n in range(20_000)}
    merges = [[f"wo{n}", f"rd{n}"] for n in range(20_000)]
    found["state"]["optimizers"] = {"Adam": optimizer.state_dict()}
    found["state"]["tokenizer"] = {"content": json.loads(json.dumps({"v": words, "m": merges}))}
    torch.save(found, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        data = archive.read("a/data.pkl")
    read_pickled(tmp_path / "a.pt", mmap=True)
    assert 2 < machines[0].spent / len(data) < BYTES_A_BYTE / 2


def test_what_is_out_of_proportion_is_refused(monkeypatch):
    """A hundred bytes of values for a byte of the file."""
    data = b"\x80\x02]q\x00(" + b"\x8f0" * 10_000 + b"e."
    assert opcodes.read_bytes(data, tensors.find) == []
    monkeypatch.setattr(machine, "FREE_BYTES", 1000)
    with pytest.raises(reach.Broken, match="far more memory than its size tells"):
        opcodes.read_bytes(data, tensors.find)


def test_more_opcodes_than_any_file_has_are_refused(monkeypatch):
    monkeypatch.setattr(opcodes, "MAX_OPCODES", 1000)
    with pytest.raises(reach.Broken, match="more than 1,000 opcodes"):
        opcodes.read_bytes(b"N0" * 1000 + b"N.", tensors.find)


@pytest.mark.parametrize("value", [[[]] * 5, [[n] for n in range(5000)], [{n: ()} for n in "abc"]])
def test_lists_that_hold_no_other_are_counted_without_ado(value, monkeypatch):
    """600,000 empty lists took seconds when each had a frame of its own."""
    made = []

    class Counted(reach._Frame):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr(reach, "_Frame", Counted)
    assert opcodes.read_bytes(pickle.dumps(value, 2), tensors.find) == value
    assert len(made) <= 2 + (type(value[0]) is dict) * len(value)


def test_no_garbage_is_looked_for_while_a_pickle_is_read():
    """Python would walk through all of its values, again and again."""
    seen = []

    def find(path):
        seen.append(gc.isenabled())
        return tensors.find(path)

    opcodes.read_bytes(b"ctorch\nfloat32\n.", find)
    with pytest.raises(machine.Refused):
        opcodes.read_bytes(b"cposix\nsystem\n.", find)
    assert seen == [False, False]
    assert gc.isenabled()
    gc.disable()
    try:
        opcodes.read_bytes(b"ctorch\nfloat32\n.", find)
        assert not gc.isenabled()
    finally:
        gc.enable()
