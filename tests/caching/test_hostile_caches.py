"""Caches that somebody else made: errors that name the file, no memory for what is claimed."""

import io
import json
import os
import tracemalloc

import numpy as np
import pytest
import torch
import xxhash
import zstd
from caching.conftest import answer, key, write
from streaming import MDSWriter

from composer_distill.caching import few, forms, frames, index
from composer_distill.caching.answers import Answers, decode
from composer_distill.caching.few import keep_few, pack_few, unpack_few
from composer_distill.caching.inspection import manifest_of
from composer_distill.caching.manifest import Recipe
from composer_distill.caching.packing import pack, pack_whole, unpack, unpack_whole
from composer_distill.caching.reader import Cache
from composer_distill.caching.shards import DATA, FACTS, KEYS, checksum
from composer_distill.caching.writer import PartWriter
from composer_distill.cli import main
from composer_distill.teachers.cached import CachedTeacher

SHARD = "part-00000/shard-00000"


def change(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def replace_index(folder, found):
    stream = io.BytesIO()
    np.save(stream, found)
    (folder / "index.npy").write_bytes(stream.getvalue())
    change(folder / "manifest.json", index=xxhash.xxh3_128_hexdigest(stream.getvalue()))


def replace_shard(folder, data):
    path = folder / SHARD / DATA
    path.write_bytes(data)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    shards[f"{SHARD}/{DATA}"] |= {"bytes": len(data), "checksum": checksum(path)}
    change(folder / "manifest.json", shards=shards)


def replace_rows(folder, columns, tmp_path):
    """Write one sample anew, with all checksums right."""
    with MDSWriter(out=str(tmp_path / "rows"), columns=dict.fromkeys(columns, "bytes")) as writer:
        writer.write(columns)
    replace_shard(folder, (tmp_path / "rows" / DATA).read_bytes())


@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_535, 65_791, 65_792, 300_000])
@pytest.mark.parametrize("kind", ["zeros", "noise"])
def test_the_size_of_a_frame_is_what_zstandard_says(size, kind):
    raw = bytes(size) if kind == "zeros" else os.urandom(size)
    for level in (1, 3, 12):
        data = zstd.compress(raw, level, 1)
        assert frames.packed_size(data) == size
        assert frames.decompress(data, size) == raw


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + data,
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data + b"\x50\x2a\x4d\x18\x04\0\0\0abcd",
        lambda data: data[:5],
        lambda data: b"",
        lambda data: b"x" * 600,
    ],
)
def test_what_is_no_single_frame_is_refused(change):
    with pytest.raises(ValueError, match="bytes are there that are"):
        frames.decompress(change(zstd.compress(os.urandom(600))), 600)


def bomb(size):
    """A frame that says that it holds so much, and is one byte again and again."""
    blocks = -(-size // (1 << 17))
    block = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((1 << 17) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    head = b"\x28\xb5\x2f\xfd" + bytes([3 << 6 | 1 << 5]) + size.to_bytes(8, "little")
    return head + block * (blocks - 1) + last


def test_a_few_bytes_do_not_become_gigabytes():
    small = bomb(1 << 20)
    assert frames.decompress(small, 1 << 20) == bytes(1 << 20)
    claiming = small[:5] + (1 << 40).to_bytes(8, "little") + small[13:]
    tracemalloc.start()
    try:
        for data, asked in ((bomb(1 << 32), 1 << 32), (claiming, 1 << 40)):
            with pytest.raises(ValueError, match="as no answer is"):
                unpack(data, torch.uint8, (asked,))
        with pytest.raises(ValueError, match="1,048,576 bytes are packed where 600 are needed"):
            unpack(small, torch.uint8, (600,))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [[-1, -1], [-1], [1 << 40, 1 << 40], [0, -5]])
def test_a_shape_that_is_none(shape):
    columns = {**pack_whole(torch.ones(1)), "shape": pack(torch.tensor(shape))}
    with pytest.raises(ValueError, match="is no shape of an answer"):
        unpack_whole(columns, torch.float32)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"shape": np.array([-1, -1]).tobytes(), "values": b""}, "is no shape of an answer"),
        ({"shape": b"abc", "values": b""}, "ValueError"),
        ({"values": b""}, "KeyError: 'shape'"),
        ({"shape": np.array([3]).tobytes(), "values": b"12"}, "2 bytes are there where 12 are"),
        ({"shape": np.array([1 << 10]).tobytes(), "values": b"x" * 99}, "packed in no known way"),
    ],
)
def test_a_damaged_row_is_named_by_shard_and_sample(folder, tmp_path, columns, said):
    replace_rows(folder, columns, tmp_path)
    answers = Answers(Cache(folder))
    answers._cache.find = lambda keys: np.zeros(len(keys), np.int64)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=rf"{SHARD}.* is damaged: sample 0 of it .*{said}.*again"):
        answers.find(torch.ones(1, 3), ())


@pytest.mark.parametrize("place", [9 << 32, (1 << 63) + 5, (1 << 64) - 2, 5_000, (1 << 32) - 1])
def test_an_index_that_names_places_that_are_not_there(folder, place):
    replace_index(folder, index.build(key(3)[None], np.array([place], np.uint64)))
    cache = Cache(folder)
    (found,) = cache.find(key(3)[None]).tolist()
    with pytest.raises(ValueError, match=rf"{folder}: .*(names shard|sample \d+ of it).*again"):
        cache.rows([found])


@pytest.mark.parametrize("data", [b"", b"\xff" * 4, b"\xff" * 100, bytes(100), b"{" * 5000])
def test_a_shard_that_is_none_with_the_right_checksum(folder, data):
    replace_shard(folder, data)
    with pytest.raises(ValueError, match=rf"{SHARD}/{DATA} is damaged: .*again"):
        Cache(folder).rows([0])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"[" * 100_000, b"\xff"])
@pytest.mark.parametrize("name", [FACTS, KEYS])
def test_what_lies_beside_a_shard_is_named(folder, name, content, capsys):
    change(folder / "manifest.json", finished=False)
    (folder / SHARD / name).write_bytes(content)
    said = rf"{SHARD}/{name}.*Delete the folder of that shard"
    for use in (lambda: Cache(folder, unfinished=True), lambda: PartWriter(folder, 7)):
        with pytest.raises(ValueError, match=said):
            use()
    if name == FACTS:
        with pytest.raises(ValueError, match=said):
            manifest_of(folder)
        with pytest.raises(SystemExit):
            main(["inspect", str(folder)])
        assert f"{SHARD}/{FACTS} tells nothing" in capsys.readouterr().err


def test_keys_that_claim_more_than_there_is_take_no_memory(folder):
    head = b"\x93NUMPY\x01\x00\x76\x00"
    text = b"{'descr': '<u8', 'fortran_order': False, 'shape': (1099511627776, 2), }"
    change(folder / "manifest.json", finished=False)
    (folder / SHARD / KEYS).write_bytes(head + text.ljust(0x75) + b"\n")
    with pytest.raises(ValueError, match="holds no keys"):
        Cache(folder, unfinished=True)


WRONG = {
    "classes": ["3", -1, 1 << 40, None, True],
    "dtype": ["load", "float33", 5, None],
    "by_position": [1, "yes"],
    "fields": ["abc", [1], {"a": 1}],
    "samples": ["1", -1, 1.5],
    "positions": [None, "x"],
    "bytes": [[]],
    "mass": ["0.5"],
    "index": [5],
    "finished": ["yes", 1],
    "versions": [["a"]],
    "shards": [[1], {"a": 1}, {"a": {}}, {"a\0": {"bytes": 1, "checksum": "0"}}],
    "recipe": [
        None,
        {"teacher": 5},
        {"teacher": "x", "kind": "logit"},
        {"teacher": "x", "kind": ["logits"]},
        {"teacher": "x", "count": 0},
        {"teacher": "x", "count": 1 << 40},
        {"teacher": "x", "temperature": 0},
        {"teacher": "x", "temperature": float("nan")},
        {"teacher": "x", "seed": -1},
        {"teacher": "x", "dtype": "tensor"},
        {"teacher": "x", "vocab_size": "8"},
        {"teacher": "x", "stranger": 1},
        {},
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_manifest_whose_entries_are_of_another_form(folder, name):
    for value in WRONG[name]:
        if (name, value) == ("dtype", None):
            continue  # of a recipe that is no entry
        change(folder / "manifest.json", **{name: value})
        for use in (lambda: Cache(folder), lambda: manifest_of(folder)):
            with pytest.raises(ValueError, match=f"{folder}: its manifest.json is damaged .*W"):
                use()


def test_every_entry_of_a_manifest_has_a_form():
    """A new one fails here until it has."""
    from dataclasses import fields

    from composer_distill.caching.manifest import Manifest

    named = {entry.name for kind in (Recipe, Manifest) for entry in fields(kind)}
    assert named - {"recipe", "shards"} <= set(forms._FORMS)


def test_a_named_pipe_is_not_waited_for(folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (f"{SHARD}/{DATA}", "index.npy", "manifest.json"):
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "pipe")
        if name.endswith(DATA):
            shards = json.loads((folder / "manifest.json").read_text())["shards"]
            shards[name]["bytes"] = 0
            change(folder / "manifest.json", shards=shards)
        with pytest.raises((OSError, ValueError), match=str(folder)):
            Cache(folder)
    assert manifest_of(folder) is None


def test_a_named_pipe_in_an_unfinished_cache_is_not_waited_for(folder):
    (folder / SHARD / DATA).unlink()
    os.mkfifo(folder / SHARD / DATA)
    change(folder / "manifest.json", finished=False)
    with pytest.raises(FileNotFoundError, match="is missing or cut short"):
        Cache(folder, unfinished=True).rows([0])


STEERING = "\x1b[2J" + "x" * 100_000
LOST = {"samples": 1, "bytes": 1, "checksum": ""}


@pytest.mark.parametrize(
    "entries",
    [
        {"shards": {STEERING: LOST}},
        {"shards": {"\x1b[2J": LOST}},
        {"version": STEERING},
        {"shards": {f"/{STEERING}": LOST}},
        {"recipe": {"teacher": "x", STEERING: 1}},
    ],
)
def test_names_in_a_manifest_steer_no_terminal(folder, entries):
    change(folder / "manifest.json", **entries)
    with pytest.raises((ValueError, OSError), match=str(folder)) as caught:
        Cache(folder)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["dtype", "fields"])
def test_what_shards_say_in_an_unfinished_cache_fills_no_terminal(folder, name):
    other = folder / "part-00001" / "shard-00000"
    facts = json.loads((folder / SHARD / FACTS).read_text())
    changed = {"dtype": "float16", "fields": ["x" * 100_000]}[name]
    (other / FACTS).write_text(json.dumps(facts | {name: changed}))
    change(folder / "manifest.json", finished=False)
    with pytest.raises(ValueError, match=f"its answers differ in {name}") as caught:
        manifest_of(folder)
    assert len(str(caught.value)) < 1000


def test_what_a_cache_says_of_its_teacher_steers_no_terminal(folder):
    entries = json.loads((folder / "manifest.json").read_text())
    recipe = {**entries["recipe"], "teacher": "\x1b[2J" + "x" * 10**6}
    change(folder / "manifest.json", recipe=recipe)
    teacher = CachedTeacher(folder)
    assert "\x1b" not in repr(teacher)
    assert len(repr(teacher)) < 1000
    with pytest.raises(ValueError, match="holds the answers of") as caught:
        CachedTeacher(folder, teacher=torch.nn.Linear(2, 2))
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["top_k", "samples"])
@pytest.mark.parametrize("classes", [4, 70_000])
def test_a_class_that_is_none_is_refused(kind, classes):
    recipe = Recipe("x", kind, 3, 1.0, 0 if kind == "samples" else None, "float32")
    logits = torch.randn(5, classes)
    logits[:, -1] = 50.0  # which all keep
    columns = pack_few(keep_few(logits, recipe, key(1)), recipe, torch.float32)
    assert int(unpack_few(columns, 5, recipe, torch.float32, classes).indices.max()) == classes - 1
    with pytest.raises(ValueError, match=f"class {classes - 1} is kept of {classes - 1} classes"):
        unpack_few(columns, 5, recipe, torch.float32, classes - 1)


def test_draws_that_are_more_than_there_were(monkeypatch):
    recipe = Recipe("x", "samples", 3, 1.0, 0, "float32")
    ids = {"indices": pack(torch.zeros(300, dtype=torch.uint16))}
    rest = {"times": pack(torch.ones(300, dtype=torch.uint8)), "entropy": pack(torch.zeros(3))}
    for counts in ([200, 50, 50], [0, 150, 150]):
        columns = {"distinct": pack(torch.tensor(counts).to(torch.uint8)), **ids, **rest}
        with pytest.raises(ValueError, match=r"a position has \d+ classes of 3 draws"):
            unpack_few(columns, 3, recipe, torch.float32, 4)
    wide = Recipe("x", "samples", 300, 1.0, 0, "float32")
    distinct = torch.tensor([298, 1, 1], dtype=torch.int32)
    times = {"times": pack(torch.ones(300, dtype=torch.int32))}
    columns = {"distinct": pack(distinct), **ids, **rest, **times}
    assert unpack_few(columns, 3, wide, torch.float32, 4).indices.shape == (3, 298)
    monkeypatch.setattr(few, "_WIDE", 10)
    monkeypatch.setattr(few, "_SPREAD", 2)
    with pytest.raises(ValueError, match="3 positions of 298 classes are 300 classes"):
        unpack_few(columns, 3, wide, torch.float32, 4)


def test_every_cut_and_flip_of_a_cache_is_an_error_or_harmless(folder):
    """With the checksum made anew: what somebody made up, and not damage alone."""
    whole = (folder / SHARD / DATA).read_bytes()
    for place in range(0, len(whole), 5):
        for data in (whole[:place], whole[:place] + b"\xff" + whole[place + 1 :]):
            replace_shard(folder, data)
            try:
                for row in Cache(folder).rows([0, 1, 2]):
                    decode(row, Recipe("x"), torch.float32, 3)
            except (ValueError, FileNotFoundError):
                continue
    assert torch.equal(answer(2), torch.full((3,), 2.0))
    assert write(folder.parent / "new", [1]).samples == 1
