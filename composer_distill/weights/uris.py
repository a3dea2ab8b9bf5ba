"""Which sources lie in an object store, and where in it."""

import re
from pathlib import Path
from typing import NamedTuple

SCHEMES = ("s3", "gs", "oci", "azure", "dbfs")
_URI = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+._-]+):/(?:/(?P<bucket>[^/]*)/?)?(?P<name>.*)", re.S
)


class Remote(NamedTuple):
    """An object, or a folder of them, in a store."""

    scheme: str
    bucket: str
    name: str

    @property
    def uri(self) -> str:
        """How the object is called anywhere."""
        return f"{self.scheme}://{self.bucket}/{self.name}"


def parse_remote(source: str | Path) -> Remote | None:
    """Take a URI apart, or give None for a local path.

    Composer's own parser cuts names at ``#`` and ``?``, which objects may well hold.

    Args:
        source: What a user wrote.

    Raises:
        ValueError: If it is a URI of a kind that cannot be read.

    Example:
        >>> parse_remote("s3://bucket/run #1/latest-rank0.pt")
        Remote(scheme='s3', bucket='bucket', name='run #1/latest-rank0.pt')
        >>> parse_remote("./run #1/latest-rank0.pt") is None
        True
    """
    found = _URI.fullmatch(str(source).replace("AZURE_BLOBS://", "azure://"))
    if found is None or isinstance(source, Path):
        return None
    scheme = found["scheme"].lower()
    if found["bucket"] is None and scheme != "dbfs":
        return None
    if scheme not in SCHEMES:
        hint = {"file": "leave file:// out", "hf": "use Teacher.from_pretrained"}.get(scheme)
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ValueError(
            f"{scheme}:// cannot be read; {hint or f'known are local paths and {known}'}"
        )
    if not found["name"] or (not found["bucket"] and scheme != "dbfs"):
        raise ValueError("the URI names no object; write scheme://bucket/name")
    if re.search("[:@]", found["bucket"] or ""):
        raise ValueError(
            "the URI holds credentials, which are not read from there; write scheme://bucket/name, "
            "and give them as the store's package asks for them (AWS_ACCESS_KEY_ID, ...)"
        )
    return Remote(scheme, found["bucket"] or "", found["name"])
