"""A cache in an object store, against a server of the S3 protocol on this machine."""

import boto3
import numpy as np
import object_store
import pytest
import torch
from caching.conftest import answer, key

from composer_distill import cli
from composer_distill.caching.packing import unpack_whole
from composer_distill.caching.reader import Cache

BUCKET = "answers"


@pytest.fixture
def store(folder, tmp_path, monkeypatch):
    """The small cache in a bucket, and the names of what is downloaded."""
    with object_store.serving() as address:
        object_store.use(address, tmp_path / "downloads", monkeypatch)
        client = boto3.client("s3", endpoint_url=address)
        client.create_bucket(Bucket=BUCKET)
        for path in folder.rglob("*"):
            if path.is_file():
                client.upload_file(str(path), BUCKET, f"run/{path.relative_to(folder).as_posix()}")
        yield client, object_store.downloaded(monkeypatch)
        client.close()


def read(cache, number):
    (place,) = cache.find(key(number)[None]).tolist()
    return unpack_whole(cache.rows([place])[0], torch.float32)


def test_shards_are_downloaded_when_they_are_needed_and_once(store, capsys):
    client, names = store
    uri = f"s3://{BUCKET}/run/"
    for _ in range(2):
        cache = Cache(uri)
        assert cache.manifest.samples == 18
        for number in (3, 4, 14):
            assert torch.equal(read(cache, number), answer(number))
        assert (cache.find(np.array([[8, 8]], np.uint64)) == -1).all()
    shards = [name for name in names if name.endswith(".mds")]
    assert len(shards) == len(set(shards)) == 2  # of three
    assert cli.main(["inspect", uri]) == 0
    assert "samples: 18" in capsys.readouterr().out
    client.delete_object(Bucket=BUCKET, Key="run/part-00000/shard-00001/shard.00000.mds")
    with pytest.raises(FileNotFoundError, match="which its manifest names, is missing"):
        read(Cache(uri), 9)


def test_a_folder_without_a_cache_in_a_store_is_named(store):
    with pytest.raises(FileNotFoundError, match="there is no cache of teachers' answers at"):
        Cache(f"s3://{BUCKET}/elsewhere")
