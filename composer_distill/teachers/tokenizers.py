"""The tokenizer beside a Hugging Face model's weights, to be compared with a student's."""

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from composer_distill.teachers.confinement import confined
from composer_distill.teachers.tokenizer_files import NORMALIZERS, SETTINGS, check_file
from composer_distill.weights.errors import clean_errors
from composer_distill.weights.wording import plain

log = logging.getLogger(__name__)

# What a tokenizer is saved as, one of which is in every folder that holds one
_FILES = ("tokenizer_config.json", "tokenizer.json", "vocab.json", "vocab.txt")
_CODE = "auto_map"


def folder_tokenizer(folder_or_name: str, owner: str) -> Any | None:
    """Return the tokenizer of a Hugging Face folder or name; None where there is none.

    Code that comes with it is never run. One that can't be read is a warning in the log.

    Args:
        folder_or_name: A local folder, or a name on the hub.
        owner: Whose it is, for the log.
    """
    folder = Path(folder_or_name)
    if folder.is_dir() and not any((folder / name).is_file() for name in _FILES):
        return None
    return _read(folder_or_name, owner)


def stored_tokenizer(stored: Mapping[str, Any], owner: str) -> Any | None:
    """Return the tokenizer that a Composer checkpoint stores; None where it stores none.

    Its files are written to a temporary folder, for transformers to read: data alone, under plain
    names.

    Args:
        stored: What the checkpoint holds beside the weights.
        owner: Whose it is, for the log.
    """
    files: Any = stored.get("integrations")
    for key in ("huggingface", "tokenizer"):
        files = files.get(key) if isinstance(files, Mapping) else None
    if not isinstance(files, Mapping) or not files:
        return None
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, entry in files.items():
                _write(Path(folder), str(name), entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:  # no tokenizer's files
            return _tell(owner, error)
        return _read(folder, owner)


def _write(folder: Path, name: str, entry: Any) -> None:
    """Write one file as Composer took it apart; what is no data, or leads elsewhere, is left."""
    extension, content = str(entry["file_extension"]), entry["content"]
    name = name if name.endswith(extension) else name + extension
    if Path(name).name != name:
        return
    path = folder / name
    if extension == ".json":
        data = {key: value for key, value in content.items() if key != _CODE}
        path.write_text(json.dumps(data), encoding="utf-8")
    elif extension == ".txt":
        path.write_text("\n".join(content), encoding="utf-8")
    elif extension == ".model":
        path.write_bytes(content)


def _read(folder_or_name: str, owner: str) -> Any | None:
    from transformers import AutoTokenizer

    try:
        with clean_errors(), confined(folder_or_name):
            _check(folder_or_name)
            return AutoTokenizer.from_pretrained(folder_or_name, trust_remote_code=False)
    except Exception as error:  # whatever a library says to files that are not its own
        return _tell(owner, error)


def _check(folder_or_name: str) -> None:
    """Look at what a folder holds, or what the hub gives under a name."""
    from transformers.utils.hub import cached_file

    kinds = ("gated_repo", "missing_entries", "connection_errors")
    options: Any = {f"_raise_exceptions_for_{kind}": False for kind in kinds}
    for name in (*SETTINGS, NORMALIZERS):
        file = cached_file(folder_or_name, name, **options)
        if file is not None:
            check_file(Path(file))


def _tell(owner: str, error: Exception) -> None:
    log.warning(
        "%s: its tokenizer could not be read, and is not compared with the student's (%s: %s). "
        "Load it yourself and set teacher.model.tokenizer.",
        owner,
        type(error).__name__,
        plain(str(error), 1000),
    )
