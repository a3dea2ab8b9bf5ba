"""Object stores that refuse, break off, change under the reader, or find no room."""

import logging
import os
import shutil
import subprocess

import pytest
import torch
from torch import nn
from weights.faulty_store import FaultyStore

from composer_distill.teachers import Teacher, load_weights
from composer_distill.weights import stores
from composer_distill.weights.inspection import describe

BUCKET = "checkpoints"
SOURCE = f"s3://{BUCKET}/run/a.pt"


@pytest.fixture
def faulty(server, s3, monkeypatch, tmp_path):
    """A store that holds a layer's weights, and answers as it is told."""
    torch.save(nn.Linear(8, 8).state_dict(), tmp_path / "a.pt")
    s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "run/a.pt")
    store = FaultyStore(server)
    monkeypatch.setenv("S3_ENDPOINT_URL", store.address)
    monkeypatch.setattr(stores, "PAUSE", 0.01)
    yield store
    store.stop()


def load(source=SOURCE):
    layer = nn.Linear(8, 8)
    load_weights(layer, source, name="the expert")
    return layer


def left_in_the_cache(tmp_path):
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} - {"lock"}


def test_access_refused(faulty, tmp_path):
    faulty.fault = lambda method, path: 403
    with pytest.raises(
        PermissionError, match=rf"the expert: cannot read {SOURCE}: .*\(403\).*check"
    ):
        load()
    assert len(faulty.requests) == 1  # to ask again would bring the same


def test_no_such_bucket(faulty):
    with pytest.raises(FileNotFoundError, match="the expert: .*no such bucket; check the URI"):
        load("s3://another-bucket/a.pt")


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_in_trouble(faulty, caplog, status):
    faulty.fault = lambda method, path: status
    with pytest.raises(OSError, match=rf"the expert: .*in 3 tries .*{status}.*; try again later"):
        load()
    assert len(faulty.requests) == 3
    assert "try 1 of 3 failed" in caplog.text


def test_trouble_that_passes(faulty):
    answers = iter([503, 500])
    faulty.fault = lambda method, path: next(answers, None)
    load()


def test_nobody_there(monkeypatch, s3):
    monkeypatch.setattr(stores, "PAUSE", 0.01)
    monkeypatch.setenv("S3_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="the expert: .*no answer that can be used in 3 tries"):
        load()


def get(fault):
    return lambda method, path: fault if method == "GET" and "run/a.pt" in path else None


@pytest.mark.parametrize("fault", ["cut", "silent", "flip"])
def test_a_body_that_breaks_off_or_differs(faulty, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(stores, "SILENCE", 0.3)
    faulty.fault = get(fault)
    with pytest.raises(OSError, match="the expert: .*no answer that can be used in 3 tries"):
        load()
    # Tries of ours and of the store's package do not multiply
    assert sum(method == "GET" for method, _ in faulty.requests) <= 2 * stores.TRIES
    assert left_in_the_cache(tmp_path) == set()
    assert not list((tmp_path / "cache").rglob("part-*"))
    faulty.fault = lambda method, path: None
    load()
    assert left_in_the_cache(tmp_path) == {"object", "object.record.json"}


def test_it_gives_up_in_the_stated_time():
    """A minute: three tries of twenty seconds without a byte."""
    assert stores.TRIES * stores.SILENCE == 60


def replaced_after(s3, tmp_path, times):
    """Another file of the same size takes the object's place after each of the first downloads."""
    seen = []

    def fault(method, path):
        if method == "GET" and "run/a.pt" in path and len(seen) < times:
            seen.append(path)
            torch.manual_seed(len(seen))
            torch.save(nn.Linear(8, 8).state_dict(), tmp_path / "b.pt")
            s3.upload_file(str(tmp_path / "b.pt"), BUCKET, "run/a.pt")

    return fault


def test_an_object_that_is_replaced_between_two_requests(faulty, s3, tmp_path, caplog):
    faulty.fault = replaced_after(s3, tmp_path, 1)
    with caplog.at_level(logging.WARNING):
        layer = load()
    assert "run/a.pt was replaced while it was downloaded" in caplog.text
    assert torch.equal(layer.weight, torch.load(tmp_path / "b.pt", weights_only=True)["weight"])


def test_an_object_that_never_rests(faulty, s3, tmp_path):
    faulty.fault = replaced_after(s3, tmp_path, 100)
    with pytest.raises(OSError, match="was replaced each of the 3 times.*wait until"):
        load()


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("object", "folder"),
        ("object", "link"),
        ("object.record.json", "folder"),
        ("object.record.json", "dangling"),
        ("entry", "link"),
    ],
)
def test_a_cache_entry_that_is_none(faulty, tmp_path, what, kind):
    expected = load().weight
    entry = next((tmp_path / "cache").rglob("object")).parent
    place = entry if what == "entry" else entry / what
    outside = tmp_path / "outside"
    shutil.move(place, outside)
    if kind == "dangling":
        outside.unlink()
    if kind == "folder":
        (place / "full").mkdir(parents=True)
    else:
        place.symlink_to(outside)
    before = outside.stat().st_mtime_ns if outside.exists() else None
    assert torch.equal(load().weight, expected)
    assert not place.is_symlink()
    assert before is None or outside.stat().st_mtime_ns == before
    assert left_in_the_cache(tmp_path) == {"object", "object.record.json"}


@pytest.mark.parametrize("key", ["hf//tmp/escaped.json", "hf/../../escaped.json"])
def test_objects_of_a_folder_stay_in_the_cache(faulty, s3, key):
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
    with pytest.raises(ValueError, match="would be written outside of the cache"):
        load(f"s3://{BUCKET}/hf")


def test_a_folder_of_the_cache_that_leads_elsewhere(faulty, s3, tmp_path):
    nn_state = nn.Linear(8, 8).state_dict()
    torch.save(nn_state, tmp_path / "pytorch_model.bin")
    s3.upload_file(str(tmp_path / "pytorch_model.bin"), BUCKET, "hf/pytorch_model.bin")
    load(f"s3://{BUCKET}/hf")
    folder = next((tmp_path / "cache").rglob("folder"))
    shutil.rmtree(folder)
    (tmp_path / "outside").mkdir()
    folder.symlink_to(tmp_path / "outside")
    assert torch.equal(load(f"s3://{BUCKET}/hf").weight, nn_state["weight"])
    assert not list((tmp_path / "outside").iterdir())


def test_what_a_stopped_download_left_is_cleared_away(faulty, tmp_path):
    load()
    entry = next((tmp_path / "cache").rglob("object")).parent
    (entry / "part-stopped").mkdir()
    (entry / "part-stopped" / "object.tmp").write_bytes(b"half")
    load()
    assert not (entry / "part-stopped").exists()


def test_a_full_disk(faulty, s3, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        torch.save({"weight": torch.ones(200_000)}, tmp_path / "big.pt")
        s3.upload_file(str(tmp_path / "big.pt"), BUCKET, "run/big.pt")
        monkeypatch.setenv("COMPOSER_DISTILL_CACHE", str(disk / "cache"))
        with pytest.raises(
            OSError, match="the expert: .*no space left.*; free some room"
        ) as caught:
            load(f"s3://{BUCKET}/run/big.pt")
        assert caught.value.errno == 28
        assert not [path for path in disk.rglob("*") if path.is_file() and path.stat().st_size]
        load()  # a smaller one finds room
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("source", [SOURCE, "s3://another-bucket/a.pt"])
def test_inspect_says_it_too(faulty, source):
    faulty.fault = lambda method, path: 403
    with pytest.raises(PermissionError, match=f"inspect: cannot read {source}: .*; check the cred"):
        describe(source)


SECRETS = [
    "s3://AKIAKEY:hidden@checkpoints/a.pt",
    "s3://AKIAKEY:hid/den+hidden@checkpoints/a.pt",
    "https://user:hidden@host/a.pt?token=hidden",
    f"{SOURCE}?X-Amz-Signature=hidden&X-Amz-Expires=60",
    f"s3://{BUCKET}/gone.pt?sig=hidden",
]


@pytest.mark.parametrize("source", SECRETS)
def test_secrets_in_a_uri_are_not_shown(faulty, source, caplog):
    caplog.set_level(logging.DEBUG, "composer_distill")
    loads = (
        lambda: Teacher(nn.Linear(8, 8), checkpoint=source),
        lambda: Teacher.from_composer_checkpoint(source),
    )
    for attempt in loads:
        with pytest.raises((ValueError, OSError)) as caught:
            attempt()
        error = caught.value
        while error is not None:
            assert "hidden" not in str(error)
            error = error.__cause__
    try:
        assert "hidden" not in describe(source)
    except OSError as error:
        assert "hidden" not in str(error)  # noqa: PT017
    ours = [record for record in caplog.records if record.name.startswith("composer_distill")]
    assert not any("hidden" in record.getMessage() for record in ours)


def test_an_object_whose_name_holds_a_query_is_read_without_showing_it(
    faulty, s3, tmp_path, capsys
):
    source = f"s3://{BUCKET}/b.pt?sig=hidden"
    s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "b.pt?sig=hidden")
    teacher = Teacher(nn.Linear(8, 8), checkpoint=source)
    assert "hidden" not in repr(teacher) + capsys.readouterr().err
    assert f"from s3://{BUCKET}/b.pt?***" in repr(teacher)


def test_a_symlink_object_of_gigabytes_is_not_downloaded(faulty, s3):
    s3.put_object(Bucket=BUCKET, Key="run/latest.symlink", Body=bytes(5000))
    with pytest.raises(ValueError, match=r"is no \.symlink object"):
        load(f"s3://{BUCKET}/run/latest")
    assert all(method == "HEAD" for method, _ in faulty.requests)
