"""Files that attack, and files that are broken: an error that says so, and nothing executed."""

import contextlib
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

from composer_distill.teachers import load_weights


def refused(model, path, match):
    """Loading is refused, in words that name the teacher, and the model stays as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=match) as caught:
        load_weights(model, path, name="the expert")
    assert str(caught.value).startswith(f"the expert: {path}: ")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_payloads_do_run_where_nothing_stops_them(zoo, tmp_path):
    for number, kind in enumerate((zoo.Payload, zoo.EvalPayload)):
        path = tmp_path / str(number)
        torch.save(kind(path), tmp_path / "planted.pt")
        torch.load(tmp_path / "planted.pt", weights_only=False)
        assert path.exists()


@pytest.mark.parametrize("payload", ["Payload", "EvalPayload"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".safetensors", ".pt.gz", ""])
def test_planted_in_a_composer_checkpoint(zoo, trained, tmp_path, witness, payload, zipped, suffix):
    _, folder = trained
    found = torch.load(folder / "latest-rank0.pt", weights_only=False)
    found["state"]["callbacks"]["planted"] = getattr(zoo, payload)(witness)
    path = tmp_path / f"planted{suffix}"
    torch.save(found, path, _use_new_zipfile_serialization=zipped)
    refused(zoo.classifier(), path, r"it asks for (posix\.system|eval), which is no tensor")


def test_planted_beside_plain_weights(zoo, tmp_path, witness):
    torch.save(zoo.net().state_dict() | {"x": zoo.Payload(witness)}, tmp_path / "pytorch_model.bin")
    refused(zoo.net(), tmp_path / "pytorch_model.bin", r"it asks for posix\.system")


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_bare_pickle(zoo, tmp_path, witness, protocol):
    path = tmp_path / "bare.pt"
    path.write_bytes(pickle.dumps(zoo.Payload(witness), protocol=protocol))
    refused(
        zoo.net(), path, r"it asks for posix\.system|it cannot be read as tensors and plain data"
    )


@pytest.mark.parametrize("protocol", range(6))
def test_no_error_advises_to_switch_safety_off(zoo, tmp_path, protocol):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"weight": Stranger()}, protocol))
    with pytest.raises(ValueError, match="evil.pkl") as caught:
        load_weights(nn.Linear(2, 2), path, name="the expert")
    assert "weights_only" not in str(caught.value)
    assert "torch.load" not in str(caught.value)


class Stranger:
    pass


def test_a_class_that_is_not_known_is_named(zoo, tmp_path):
    torch.save(
        {"state": {"model": zoo.net().state_dict(), "config": Stranger()}}, tmp_path / "a.pt"
    )
    refused(
        zoo.net(), tmp_path / "a.pt", r"it asks for \S*Stranger, which is no tensor or plain data"
    )


def test_a_whole_pickled_model_is_refused_by_name(zoo, tmp_path):
    torch.save(zoo.net(), tmp_path / "model.pt")
    refused(zoo.net(), tmp_path / "model.pt", r"asks for torch\.nn\.modules\.container\.Sequential")


def test_a_script_module(tmp_path):
    torch.jit.script(nn.Linear(2, 1)).save(str(tmp_path / "script.pt"))
    refused(nn.Linear(2, 1), tmp_path / "script.pt", "it is a TorchScript program")


def test_zip_of_another_shape(zoo, tmp_path, witness):
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("payload.pkl", pickle.dumps(zoo.Payload(witness)))
    refused(zoo.net(), path, r"not one that torch\.save wrote \(holds 'payload\.pkl'\)")


def test_zip_with_the_right_names_only(zoo, tmp_path, witness):
    path = tmp_path / "other.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(zoo.Payload(witness), protocol=2))
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
    refused(zoo.net(), path, "it asks for posix.system")


def rezip(path, target, compression=zipfile.ZIP_STORED, change=lambda name, data: data):
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, change(record.filename, old.read(record)))


def test_zip_bomb(zoo, tmp_path):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    blow = lambda name, data: bytes(100_000_000) if name.endswith("data/0") else data  # noqa: E731
    rezip(tmp_path / "a.pt", tmp_path / "bomb.pt", zipfile.ZIP_DEFLATED, blow)
    assert (tmp_path / "bomb.pt").stat().st_size < 1_000_000
    refused(zoo.net(), tmp_path / "bomb.pt", "compressed records: torch.save writes none")


def test_zip_whose_records_overlap(zoo, tmp_path):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    place = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data/0"))
    data[place + 20 : place + 28] = (2**31 - 1).to_bytes(4, "little") * 2
    (tmp_path / "overlap.pt").write_bytes(data)
    refused(zoo.net(), tmp_path / "overlap.pt", "zip archive")


def test_a_tensor_larger_than_its_bytes(tmp_path):
    """A huge tensor that takes no room in the file costs no memory, and does not fit."""
    torch.save({"weight": torch.ones(1).expand(1 << 40), "bias": torch.ones(1)}, tmp_path / "a.pt")
    refused(nn.Linear(2, 1), tmp_path / "a.pt", r"weight \(model \(1, 2\), file \(1099511627776,\)")


def test_a_request_for_a_terabyte(zoo, tmp_path):
    class Greedy:
        def __reduce__(self):
            return bytearray, (1 << 60,)

    torch.save({"a": Greedy()}, tmp_path / "a.pt")
    refused(zoo.net(), tmp_path / "a.pt", "cannot be read as tensors and plain data .MemoryError")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated(zoo, tmp_path, zipped, share):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    data = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(data[: int(len(data) * share)])
    refused(zoo.net(), tmp_path / "cut.pt", "damaged|cannot be read|empty|truncated")


def test_one_flipped_bit_in_the_weights(zoo, tmp_path):
    net = zoo.net()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    place = data.index(net[1].weight.detach().numpy().tobytes())
    data[place + 5] ^= 1
    (tmp_path / "flipped.pt").write_bytes(data)
    torch.load(tmp_path / "flipped.pt", weights_only=True)  # PyTorch does not notice
    refused(zoo.net(), tmp_path / "flipped.pt", "damaged zip archive .*CRC")


def test_checksums_that_were_never_written_are_no_damage(zoo, tmp_path):
    net = zoo.net()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(net.state_dict(), tmp_path / "a.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    fresh = zoo.net()
    load_weights(fresh, tmp_path / "a.pt")
    assert zoo.same(fresh, net)


def test_any_flipped_byte_is_an_error_or_harmless(zoo, tmp_path):
    """Damage anywhere in the file: a ValueError or the right weights, never anything else."""
    net = zoo.net()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    data = (tmp_path / "a.pt").read_bytes()
    for place in range(0, len(data), 37):
        damaged = bytearray(data)
        damaged[place] ^= 0xFF
        (tmp_path / "b.pt").write_bytes(damaged)
        fresh = zoo.net()
        with contextlib.suppress(ValueError):
            load_weights(fresh, tmp_path / "b.pt")
            assert zoo.same(fresh, net), f"byte {place}"


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02.", os.urandom(64), b"<html>"])
def test_noise(zoo, tmp_path, content):
    (tmp_path / "noise.pt").write_bytes(content)
    refused(zoo.net(), tmp_path / "noise.pt", "it ")


def test_an_empty_folder(zoo, tmp_path):
    refused(zoo.net(), tmp_path, "it is a folder")


def test_a_named_pipe_is_not_waited_for(zoo, tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    refused(zoo.net(), tmp_path / "pipe.pt", "it is no regular file")


def test_a_file_that_may_not_be_read(zoo, tmp_path):
    torch.save(zoo.net().state_dict(), tmp_path / "secret.pt")
    (tmp_path / "secret.pt").chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"the expert: cannot read .*permission denied"):
            load_weights(zoo.net(), tmp_path / "secret.pt", name="the expert")
    finally:
        os.seteuid(user)


def test_the_callers_own_list_of_safe_classes_stays(zoo, tmp_path):
    import datetime

    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    with torch.serialization.safe_globals([Stranger, datetime.timedelta]):
        before = set(torch.serialization.get_safe_globals())
        load_weights(zoo.net(), tmp_path / "a.pt")
        assert set(torch.serialization.get_safe_globals()) == before
    torch.save(io.BytesIO, tmp_path / "a.pt")
    refused(zoo.net(), tmp_path / "a.pt", "it asks for _io.BytesIO")


def test_nothing_is_left_behind(zoo, trained, tmp_path, monkeypatch):
    """Neither in the working folder, nor among the temporary files, nor beside the checkpoint."""
    _, folder = trained
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = sorted(folder.iterdir())
    load_weights(zoo.classifier(), folder / "latest-rank0.pt")
    refused(zoo.classifier(classes=7), folder / "latest-rank0.pt", "does not fit")
    assert sorted(folder.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda w: w.to_sparse(), lambda w: w.to("meta")])
def test_tensors_that_are_not_dense(zoo, tmp_path, make):
    net = zoo.net()
    weights = net.state_dict()
    weights["1.weight"] = make(weights["1.weight"])
    torch.save(weights, tmp_path / "a.pt")
    refused(zoo.net(), tmp_path / "a.pt", r"its 1\.weight is no dense tensor|cannot be read")


def test_safetensors_whose_length_looks_like_a_compression(tmp_path):
    """93 bytes of header: the file begins as those of lzma do."""
    header = b'{"weight":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]}}'.ljust(0x5D)
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    layer = nn.Linear(2, 1, bias=False)
    load_weights(layer, path)
    assert not layer.weight.any()


def test_odd_things_beside_the_weights_do_no_harm(zoo, tmp_path):
    net = zoo.net()
    for beside in ({"algorithms": 5}, {"algorithms": [("EMA", 3), 4]}, {"integrations": [1]}):
        torch.save({"state": {"model": net.state_dict(), **beside}}, tmp_path / "a.pt")
        fresh = zoo.net()
        load_weights(fresh, tmp_path / "a.pt", ema=False)
        assert zoo.same(fresh, net)


def test_a_shape_without_an_end(tmp_path):
    """It was told in full: a line of a shape's megabytes."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}})
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    refused(nn.Linear(1, 1), path, "it has a tensor of more than 64 axes, as no checkpoint has")
