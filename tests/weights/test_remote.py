"""Object stores, against a server of the S3 protocol on this machine."""

import json
import logging
import threading

import pytest
import torch
from composer.utils import create_symlink_file

from composer_distill.teachers import Teacher, load_weights
from composer_distill.weights import remote
from composer_distill.weights.remote import fetch
from composer_distill.weights.stores import Head
from composer_distill.weights.uris import parse_remote

BUCKET = "checkpoints"


@pytest.mark.parametrize("key", ["run/latest-rank0.pt", "run #1/what?/a b~é.pt", "top.pt"])
def test_a_checkpoint_in_s3(zoo, trained, s3, key):
    model, folder = trained
    s3.upload_file(str(folder / "ep2-ba8-rank0.pt"), BUCKET, key)
    teacher = Teacher(zoo.classifier(), checkpoint=f"s3://{BUCKET}/{key}")
    assert zoo.same(teacher.model, model)
    assert f"from s3://{BUCKET}/{key}" in repr(teacher)


def test_the_progress_is_shown(zoo, trained, s3, capsys):
    _, folder = trained
    s3.upload_file(str(folder / "ep2-ba8-rank0.pt"), BUCKET, "a.pt")
    load_weights(zoo.classifier(), f"s3://{BUCKET}/a.pt")
    assert "a.pt: 100%" in capsys.readouterr().err


def test_symlinks_in_s3(zoo, trained, s3, tmp_path):
    model, folder = trained
    s3.upload_file(str(folder / "ep2-ba8-rank0.pt"), BUCKET, "run/ep2.pt")
    create_symlink_file("run/ep2.pt", tmp_path / "latest.symlink")
    s3.upload_file(str(tmp_path / "latest.symlink"), BUCKET, "run/latest-rank0.pt.symlink")
    for name in ("run/latest-rank0.pt.symlink", "run/latest-rank0.pt"):
        fresh = zoo.classifier()
        load_weights(fresh, f"s3://{BUCKET}/{name}")
        assert zoo.same(fresh, model)


def test_folders_in_s3(zoo, s3, tmp_path, downloads):
    model = zoo.bert()
    model.save_pretrained(tmp_path / "hf", max_shard_size="8KB")
    (tmp_path / "hf" / "notes.txt").write_text("not needed")
    for file in (tmp_path / "hf").iterdir():
        s3.upload_file(str(file), BUCKET, f"hf/{file.name}")
    fresh = zoo.bert()
    load_weights(fresh, f"s3://{BUCKET}/hf/")
    assert zoo.same(fresh, model)
    assert "hf/notes.txt" not in downloads


def test_the_cache_is_used_and_checked(zoo, trained, s3, downloads, tmp_path, caplog):
    _, folder = trained
    source = f"s3://{BUCKET}/a.pt"
    s3.upload_file(str(folder / "ep2-ba8-rank0.pt"), BUCKET, "a.pt")
    first = Teacher(zoo.classifier(), checkpoint=source).fingerprint()
    assert Teacher(zoo.classifier(), checkpoint=source).fingerprint() == first
    assert len(downloads) == 1

    cached = next((tmp_path / "cache").rglob("object"))
    data = bytearray(cached.read_bytes())
    data[len(data) // 2] ^= 1
    cached.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert Teacher(zoo.classifier(), checkpoint=source).fingerprint() == first
    assert "was changed after its download" in caplog.text
    assert len(downloads) == 2

    cached.with_name("object.record.json").write_text("{")
    Teacher(zoo.classifier(), checkpoint=source)
    assert len(downloads) == 3


def test_an_object_that_was_replaced_is_downloaded_again(zoo, s3, downloads, tmp_path):
    """Another run's weights have the very same size."""
    marks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
        s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "a.pt")
        marks.append(Teacher(zoo.net(), checkpoint=f"s3://{BUCKET}/a.pt").fingerprint())
    assert marks[0] != marks[1]
    assert len(downloads) == 2


def test_without_versions_a_run_trusts_its_own_downloads_only(
    zoo, s3, downloads, monkeypatch, tmp_path
):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "a.pt")
    told = remote.head
    monkeypatch.setattr(
        remote, "head", lambda store, name: (found := told(store, name)) and Head(found.size, None)
    )
    for _ in range(2):
        fetch(parse_remote(f"s3://{BUCKET}/a.pt"))
    assert len(downloads) == 1
    record = next((tmp_path / "cache").rglob("*.record.json"))
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"time": remote._STARTED - 1}))
    fetch(parse_remote(f"s3://{BUCKET}/a.pt"))
    assert len(downloads) == 2


def test_those_who_ask_at_once_wait_for_one_download(zoo, s3, downloads, tmp_path):
    torch.save(zoo.net().state_dict(), tmp_path / "a.pt")
    s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "a.pt")
    paths = []
    ask = lambda: paths.append(fetch(parse_remote(f"s3://{BUCKET}/a.pt")))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 4
    assert len(set(paths)) == 1
    assert len(downloads) == 1


def test_a_missing_object_is_named(zoo, s3):
    with pytest.raises(FileNotFoundError, match=rf"the expert: .*s3://{BUCKET}/gone\.pt"):
        load_weights(zoo.net(), f"s3://{BUCKET}/gone.pt", name="the expert")


def test_a_payload_in_s3(zoo, s3, tmp_path, witness):
    torch.save({"x": zoo.Payload(witness)}, tmp_path / "a.pt")
    s3.upload_file(str(tmp_path / "a.pt"), BUCKET, "a.pt")
    with pytest.raises(ValueError, match=r"it asks for posix\.system"):
        load_weights(zoo.net(), f"s3://{BUCKET}/a.pt")


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("file:///a.pt", "leave file:// out"),
        ("hf://a/b", r"use Teacher\.from_pretrained"),
        ("https://a/b.pt", "known are local paths and s3://, gs://, oci://, azure://, dbfs://"),
    ],
)
def test_uris_that_are_not_read(zoo, source, hint):
    with pytest.raises(ValueError, match=hint):
        load_weights(zoo.net(), source)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("gs://b/a/c.pt", ("gs", "b", "a/c.pt")),
        ("oci://b/a.pt", ("oci", "b", "a.pt")),
        ("azure://b/a.pt", ("azure", "b", "a.pt")),
        ("AZURE_BLOBS://b/a.pt", ("azure", "b", "a.pt")),
        ("dbfs:/Volumes/a/b.pt", ("dbfs", "", "Volumes/a/b.pt")),
        ("C:/models/a.pt", None),
        ("a:/b", None),
        ("./s3:/b", None),
    ],
)
def test_uris_are_taken_apart(source, expected):
    assert parse_remote(source) == expected
