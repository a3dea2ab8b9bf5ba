"""Every reader meets every hostile file, and files that were changed at random."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import composer_distill.weights
from composer_distill.weights import unpacking
from tests.weights import readers
from tests.weights.test_pickled import SMALL

HERE = Path(__file__).parent
MARK = "@@"
PICKLED = {
    "Composer checkpoint": lambda path: readers.save(path, readers.composer() | {"planted": MARK}),
    "old format": lambda path: readers.save(
        path, {"state_dict": readers.weights(), "x": MARK}, False
    ),
    "nested state_dict": lambda path: readers.save(path, {"model": readers.weights(), "x": MARK}),
    "Hugging Face folder": lambda path: readers.folder(
        path,
        "pytorch_model.bin",
        lambda file: readers.save(file, {"model": readers.weights(), "x": MARK}),
    ),
}
PAYLOADS = {name: raw for name, raw in SMALL.items() if len(raw) < 10_000} | {
    "a call of the system": b"cposix\nsystem\n" + readers.pickled("touch {}") + b"\x85R",
    "an evaluation": b"cbuiltins\neval\n" + readers.pickled("open('{}', 'w')") + b"\x85R",
    "a name with dots": b"\x8c\x05torch\x8c\x12serialization.load\x93",
    "torch itself": b"ctorch\nload\n)R",
    "an unknown class of tensors": b"ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(ctorch._utils\n_rebuild_tensor\ncos\nsystem\n)NtR",
    "a control character in a name": b"cevil\x1b[2J\nname\n",
}


@pytest.mark.parametrize("kind", PICKLED)
def test_every_reader_of_pickles_meets_every_hostile_one(tmp_path, kind, witness):
    for number, (name, raw) in enumerate(PAYLOADS.items()):
        path = tmp_path / str(number)
        PICKLED[kind](path)
        file = path / "pytorch_model.bin" if path.is_dir() else path
        readers.plant(file, raw.replace(b"{}", str(witness).encode()[:2]))
        for way, text in readers.read_some(path).items():
            assert way == "describe" or f"{path}: it " in text, f"{name} {way}: {text}"
            assert not text.startswith("RAW"), f"{name} {way}: {text}"
            assert len(text) < 1000
            assert all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("kind", readers.KINDS)
def test_every_kind_is_read_as_it_is(tmp_path, kind):
    if not readers.available(kind):
        pytest.skip(f"the program for {kind} is not installed")
    path, _ = readers.write(kind, tmp_path / "whole")
    ways = readers.read_some(path)
    assert ways["describe"] == ""
    assert ways["loose"] == "" or kind == "Hugging Face model"  # which no linear layer is


@pytest.mark.parametrize("kind", readers.KINDS)
@pytest.mark.parametrize("content", [b"{" * 10_000])
def test_files_of_every_kind_that_hold_something_else(tmp_path, kind, content):
    if not readers.available(kind):
        pytest.skip(f"the program for {kind} is not installed")
    path, written = readers.write(kind, tmp_path / "other")
    for file in written:
        file.write_bytes(content)
    for text in readers.read_some(path).values():
        assert not text.startswith("RAW"), text
        assert all(letter.isprintable() or letter == "\n" for letter in text)


# What opens something, and the row of readers.KINDS that goes through it
MET = {
    "open_source": "state_dict",
    "open_file": "state_dict",
    "open_folder": "Hugging Face folder, bin",
    "open_safetensors": "safetensors",
    "open_sharded": "sharded",
    "open_store": "state_dict",  # what was downloaded is read as any file; test_stores.py
    "read_pickled": "state_dict",
    "read_archive": "state_dict",
    "read_into": "state_dict",
    "read_if_whole": "state_dict",
    "read_bytes": "state_dict",
    "read_json": "Hugging Face model",
    "read_legacy": "state_dict, old format",
    "read_metadata": "sharded",
    "unpacked": "gzip",
}


def test_every_reader_has_a_row():
    """What opens files stands in the roster: a new one fails here until it does."""
    room = Path(composer_distill.weights.__file__).parent
    openers = {
        node.name
        for file in room.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith(("open_", "read_", "unpack"))
    }
    assert openers == set(MET), "give what is new a row in readers.KINDS, and name it in MET"
    assert set(MET.values()) <= set(readers.KINDS)
    packed = {"gz": "gzip", "bz2": "bzip2", "lz4": "lz4", "xz": "xz", "lzma": "lzma", "zst": "zstd"}
    assert set(unpacking.MAGIC.values()) - {"lzo"} == set(packed)  # for which few have the program
    assert set(packed.values()) <= set(readers.KINDS)


def test_files_changed_at_random_lead_to_clean_errors(tmp_path):
    """A few hundred changes; docs/contributing.md tells how to make thousands, and others."""
    count = os.environ.get("COMPOSER_DISTILL_FUZZ", "420")
    seed = os.environ.get("COMPOSER_DISTILL_FUZZ_SEED", "1")
    done = subprocess.run(
        [sys.executable, HERE / "fuzzing.py", tmp_path, count, seed],
        env=os.environ | {"PYTHONPATH": os.getcwd()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, f"after {[row['kind'] for row in rows]}: {done.stderr[-3000:]}"
    assert [row for row in rows if row["faults"]] == []
    assert len(rows) == sum(map(readers.available, readers.KINDS))
    assert sum(row["refused"] for row in rows) > int(count) / 20
