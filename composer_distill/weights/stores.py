"""What is asked of an object store: one request at a time, a stated number of times."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import tqdm
from composer.utils import ObjectStore, S3ObjectStore
from composer.utils.file_helpers import maybe_create_object_store_from_uri

from composer_distill.weights.errors import without_secrets
from composer_distill.weights.pickles import reason

log = logging.getLogger(__name__)

TRIES = 3
SILENCE = 20.0  # seconds without a byte, after which S3 is given up on
PAUSE = 1.0  # seconds before the second try, doubled before each further one

_Answer = TypeVar("_Answer")


class Head(NamedTuple):
    """What a store tells of an object: its size in bytes, and on S3 its version."""

    size: int
    version: str | None


def open_store(scheme: str, bucket: str, name: str) -> ObjectStore:
    """Open a store of Composer's.

    Args:
        scheme: Which kind of store.
        bucket: The bucket in it.
        name: The object that is wanted; Databricks asks for it.

    Raises:
        ValueError: If Composer knows no such store.
    """
    if scheme == "s3":  # which Composer itself would ask without an end
        once = {"total_max_attempts": 1, "mode": "standard"}
        return S3ObjectStore(
            bucket,
            client_config={"read_timeout": SILENCE, "connect_timeout": SILENCE, "retries": once},
            transfer_config={"num_download_attempts": TRIES},
        )
    uri = f"dbfs:/{name}" if scheme == "dbfs" else f"{scheme}://{bucket}/"
    store = maybe_create_object_store_from_uri(uri)
    if store is None:
        raise ValueError(f"{uri} names no object store")
    return store


def head(store: ObjectStore, name: str) -> Head | None:
    """Ask for an object's size and version; None where there is no such object.

    Args:
        store: The store.
        name: The object.

    Raises:
        OSError: If the store refuses, or gives no answer that can be used.
    """

    def ask() -> Head:
        if not isinstance(store, S3ObjectStore):
            return Head(store.get_object_size(name), None)
        told = store.client.head_object(Bucket=store.bucket, Key=store.get_key(name))
        return Head(told["ContentLength"], f"{told['ETag']} {told['LastModified']}")

    try:
        return _persistently(ask, name)
    except FileNotFoundError:
        return None


def names_under(store: ObjectStore, prefix: str) -> list[str]:
    """The names of the objects that begin with ``prefix``.

    Args:
        store: The store.
        prefix: How they begin.

    Raises:
        OSError: If the store refuses, or gives no answer that can be used.
    """
    return _persistently(lambda: store.list_objects(prefix), prefix)


def download(store: ObjectStore, name: str, target: Path, size: int) -> None:
    """Download an object, with a progress bar.

    Args:
        store: The store.
        name: The object.
        target: Where to put it; what stands there is replaced.
        size: How many bytes it must have; 0 for no bar.

    Raises:
        OSError: If the store refuses, gives no answer that can be used, or the disk is full.
    """

    def ask() -> None:
        steps = isinstance(store, S3ObjectStore)  # S3 tells each step, the others the sum so far
        with tqdm.tqdm(
            desc=without_secrets(name)[-40:],
            total=size or None, unit="B", unit_scale=True, disable=not size,
        ) as bar:  # fmt: skip

            def show(done: int, _: int) -> None:
                bar.update(done if steps else done - bar.n)

            store.download_object(name, target, overwrite=True, callback=show)
        if target.stat().st_size != size:
            raise ConnectionError(f"it came with {target.stat().st_size} of its {size} bytes")

    _persistently(ask, name)


def _persistently(ask: Callable[[], _Answer], name: str) -> _Answer:
    """Ask again where it may help, and say in words of ours what came in the end."""
    shown = without_secrets(name)
    for attempt in range(1, TRIES + 1):
        try:
            return ask()
        except ImportError:
            raise
        except Exception as error:
            final = _final(error, shown)
            if final is not None:
                raise final from error
            if attempt == TRIES or "RetriesExceeded" in type(error).__name__:
                raise OSError(
                    f"the store gave no answer that can be used in {TRIES} tries (the last: "
                    f"{_told(error)}); try again later, or download it by hand and name the file"
                ) from error
            log.warning("%s: try %d of %d failed (%s)", shown, attempt, TRIES, _told(error))
            time.sleep(PAUSE * 2 ** (attempt - 1))
    raise AssertionError  # not reached


def _final(error: Exception, name: str) -> Exception | None:
    """What leaves at once, since asking again would bring the same."""
    status, code = _status(error), _code(error)
    if code == "NoSuchBucket":
        return FileNotFoundError("the store has no such bucket; check the URI and S3_ENDPOINT_URL")
    if status in (401, 403):
        return PermissionError(
            f"the store refuses access ({status}) to {name}; check the credentials, and that they "
            "may read the bucket (a store may also say so of an object that is not there)"
        )
    if status == 404 or (status is None and isinstance(error, FileNotFoundError)):
        return FileNotFoundError(f"there is no object {name}")
    if status is not None and 400 <= status < 500 and status not in (408, 429):
        return OSError(f"the store refuses the request ({_told(error)}); check the URI")
    local = isinstance(error, OSError) and error.errno is not None
    return error if local and not isinstance(error, ConnectionError | TimeoutError) else None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error, as each store's package keeps it."""
    while error is not None:
        response = getattr(error, "response", None)
        told = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
        found = [told.get("HTTPStatusCode"), *(getattr(error, at, None) for at in _STATUS)]
        status = next((each for each in found if isinstance(each, int) and each >= 100), None)
        if status is not None:
            return status
        error = error.__cause__
    return None


_STATUS = ("status", "status_code", "code")


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    told = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(told.get("Code", ""))


def _told(error: Exception) -> str:
    return without_secrets(reason(getattr(error, "last_exception", None) or error))
