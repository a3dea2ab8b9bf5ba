"""A server of the S3 protocol on this machine, and how Composer and boto3 find it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from composer.utils import S3ObjectStore
from moto.server import ThreadedMotoServer


@contextmanager
def serving() -> Iterator[str]:
    """Serve an empty store; give its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop()


def use(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Composer find the server, and keep what is downloaded in a folder of the test."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "S3_ENDPOINT_URL": address,
        "COMPOSER_DISTILL_CACHE": str(cache),
        "NO_PROXY": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)


def downloaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list into which the name of each object goes that is downloaded from now on."""
    names: list[str] = []
    original = S3ObjectStore.download_object

    def counted(self, object_name, *arguments, **options):
        names.append(object_name)
        return original(self, object_name, *arguments, **options)

    monkeypatch.setattr(S3ObjectStore, "download_object", counted)
    return names
