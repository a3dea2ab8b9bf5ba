"""Sharded folders whose pieces are not what their metadata says."""

import io
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from composer_distill.teachers import load_weights


def write(folder, size, pieces, dtype=torch.float32):
    """A folder of one weight: each piece is an offset and the tensor that is written there."""
    chunks, places, data = [], {}, b""
    for offset, piece in pieces:
        stream = io.BytesIO()
        torch.save(piece, stream)
        chunks.append(ChunkStorageMetadata(torch.Size(offset), piece.shape))
        index = MetadataIndex("weight", torch.Size(offset))
        places[index] = _StorageInfo("0.distcp", len(data), stream.tell())
        data += stream.getvalue()
    entry = TensorStorageMetadata(TensorProperties(dtype), torch.Size(size), chunks)
    (folder / "0.distcp").write_bytes(data)
    metadata = Metadata({"weight": entry}, planner_data=None, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def layer(*size, dtype=torch.float32):
    model = nn.Module()
    model.weight = nn.Parameter(torch.zeros(size, dtype=dtype), requires_grad=False)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64, torch.int64])
def test_pieces_are_put_together(tmp_path, dtype):
    whole = torch.randn(6, 4).mul(9).to(dtype)
    pieces = [((0, 0), whole[:2]), ((2, 0), whole[2:, :1]), ((2, 1), whole[2:, 1:])]
    write(tmp_path, (6, 4), [(place, piece.clone()) for place, piece in pieces], dtype)
    model = layer(6, 4, dtype=dtype)
    load_weights(model, tmp_path)
    assert torch.equal(model.weight, whole)


@pytest.mark.parametrize(
    ("pieces", "fault"),
    [
        ([((0,), torch.ones(4)), ((0,), torch.ones(4))], "overlap and leave gaps"),
        ([((0,), torch.ones(5)), ((3,), torch.ones(3))], "overlap and leave gaps"),
        ([((0,), torch.ones(5)), ((3,), torch.ones(5))], "overlap"),
        ([((0,), torch.ones(4)), ((5,), torch.ones(3))], "leave gaps"),
        ([((0,), torch.ones(4))], "leave gaps"),
        ([], "leave gaps"),
        ([((0,), torch.ones(4)), ((4,), torch.ones(5))], "reach beyond it"),
        ([((-4,), torch.ones(4)), ((0,), torch.ones(8))], "reach beyond it"),
    ],
)
def test_pieces_that_do_not_fill_a_weight_once(tmp_path, pieces, fault):
    write(tmp_path, (8,), pieces)
    model = layer(8)
    with pytest.raises(ValueError, match=f"the expert: .*the pieces of its weight {fault}; "):
        load_weights(model, tmp_path, name="the expert")
    assert not model.weight.any()


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("written", "told"),
    [
        (torch.complex64, torch.float32),
        (torch.float32, torch.complex64),
        (torch.int64, torch.float32),
        (torch.float32, torch.int64),
        (torch.float64, torch.float32),
    ],
)
def test_a_piece_of_another_type_than_is_told(tmp_path, number, written, told):
    piece = torch.ones(8 // number, dtype=written)
    write(tmp_path, (8,), [((at * len(piece),), piece) for at in range(number)], told)
    with pytest.raises(
        ValueError, match=r"its piece of weight at \(0,\) has another shape or type"
    ):
        load_weights(layer(8, dtype=told), tmp_path)
