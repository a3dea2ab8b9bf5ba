"""Every reader meets every hostile file, and files that were changed at random."""

import ast
import json
import os
import pickle
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


def sharded(path):
    """A folder of shards whose .metadata holds the mark."""
    readers.sharded(path)
    found = pickle.loads((path / ".metadata").read_bytes())
    found.planner_data = MARK
    (path / ".metadata").write_bytes(pickle.dumps(found, protocol=2))


PICKLED |= {"sharded": sharded}
INSIDE = {"Hugging Face folder": "pytorch_model.bin", "sharded": ".metadata"}
WRAPPED = {"gzip": ["gzip", "-c"], "tar": ["tar", "-c", "-f", "-"]}
PICKLED |= dict.fromkeys(WRAPPED, PICKLED["Composer checkpoint"])
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
        readers.plant(path / INSIDE.get(kind, ""), raw.replace(b"{}", str(witness).encode()[:2]))
        if kind in WRAPPED:
            wrapped = subprocess.run([*WRAPPED[kind], path.name], cwd=tmp_path, capture_output=True)
            path.write_bytes(wrapped.stdout)
        for way, text in readers.read_some(path).items():
            # What .metadata names is a stand-in: the weights beside it may be read; they do not fit
            inert = kind == "sharded" and "does not fit the model" in text
            assert way == "describe" or inert or f"{path}: it" in text, f"{name} {way}: {text}"
            assert not text.startswith("RAW"), f"{name} {way}: {text}"
            assert len(text) < 1000
            assert all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize("kind", readers.KINDS)
def test_every_kind_is_read_as_it_is(tmp_path, kind):
    if not readers.available(kind):
        pytest.skip(f"the program for {kind} is not installed")
    path, _ = readers.write(kind, tmp_path / "whole")
    ways = readers.read_all(path)
    assert ways["describe"] == ""
    built = {FOLDER: "from_pretrained", BUILT: "from_composer_checkpoint"}  # and no linear layer
    assert ways[built.get(kind, "loose")] == ""


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


# What opens or unpacks a file, and the row of readers.KINDS that goes through it
CALLS = (
    "open", "read_bytes", "read_text", "load", "loads", "ZipFile", "mmap", "memmap", "from_file",
    "safe_open", "Popen", "frombuffer", "decompress", "from_pretrained", "download_object",
)  # fmt: skip
STATE, LEGACY, SAFE = "state_dict", "state_dict, old format", "safetensors"
FOLDER, BUILT, ANSWERS = (
    "Hugging Face model",
    "Composer checkpoint of a Hugging Face model",
    "cache of answers",
)
MET = {
    "weights/folders.py": {"_read_index": "Hugging Face parts, bin"},
    "weights/json_files.py": {"read_json": FOLDER},
    "weights/pickles.py": {"is_archive": STATE, "check_archive": STATE, "read_metadata": "sharded"},
    "weights/pickled/archive.py": {
        "_read_through": STATE, "read_archive": STATE, "_mapped": STATE, "read": STATE,
        "room_for": LEGACY,
    },
    "weights/pickled/arrays.py": {"scalar": "Composer checkpoint", "array": "Composer checkpoint"},
    "weights/pickled/legacy.py": {"read_legacy": LEGACY},
    "weights/pickled/metadata.py": {"read_metadata": "sharded"},
    # What was downloaded is read as any file; the store itself is met in test_stores.py
    "weights/remote.py": {"_is_fresh": STATE, "_checksum": STATE},
    "weights/stores.py": {"download": STATE, "ask": STATE},
    "weights/safe_tensors.py": {
        "looks_like_safetensors": SAFE, "open_safetensors": SAFE, "_check_header": SAFE,
        "_specs": SAFE,
    },
    "weights/sharded.py": {"_read_piece": "sharded"},
    "weights/sources.py": {"link_target": "link"},
    "weights/unpacking.py": {
        "_compression": "gzip", "_is_tar": "tar", "_decompress": "xz", "_extract": "tar.gz",
    },
    "teachers/huggingface.py": {"_build_pretrained": FOLDER, "_read_config": FOLDER},
    "teachers/tokenizers.py": {"_read": BUILT},
    "teachers/tokenizer_files.py": {"_check_normalizers": BUILT},
    "caching/answers.py": {"decode": ANSWERS},
    "caching/frames.py": {"decompress": ANSWERS},
    "caching/keys.py": {"read_batch": ANSWERS},
    "caching/manifest.py": {
        "read_manifest": ANSWERS, "from_json": ANSWERS, "summed": "cache of answers, unfinished",
        "write_atomically": ANSWERS,
    },
    "caching/packing.py": {"unpack": ANSWERS, "unpack_whole": ANSWERS},
    "caching/reader.py": {"_load_index": ANSWERS},
    "caching/shards.py": {
        "_to_disk": ANSWERS, "checksum": ANSWERS, "__init__": ANSWERS, "row": ANSWERS,
        "read_keys": "cache of answers, unfinished",
    },
    # The user's own texts, and not a teacher's
    "caching/tokens.py": {"_line_starts": None, "_tokens": None, "__getitem__": None},
}  # fmt: skip


def called(node):
    """The name of what is called, in any way."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def openers(file):
    """The functions of a file that open or unpack something."""
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef)
        and any(called(inner) in CALLS for inner in ast.walk(node))
    }


def test_every_reader_has_a_row():
    """What opens files stands in the roster: a new one fails here until it does."""
    package = Path(composer_distill.weights.__file__).parents[1]
    found = {
        file.relative_to(package).as_posix(): openers(file)
        for room in ("weights", "caching", "teachers")
        for file in (package / room).rglob("*.py")
    }
    told = {name: names for name, names in found.items() if names}
    assert told == {name: set(met) for name, met in MET.items()}, "give it a row in readers.KINDS"
    assert {row for met in MET.values() for row in met.values() if row} <= set(readers.KINDS)
    assert len(readers.KINDS) >= 25
    packed = {readers.PROGRAMS[kind] for kind in readers.PROGRAMS}
    assert set(unpacking.PROGRAMS.values()) <= packed | {"lzma"}


def test_a_new_reader_would_be_found(tmp_path):
    file = tmp_path / "new.py"
    for line in ("open(path)", "path.open('rb')", "np.load(path)", "zstd.decompress(path)"):
        file.write_text(f"def fresh(path):\n    return [{line}]\n\ndef other():\n    pass\n")
        assert openers(file) == {"fresh"}


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
