"""Writing, finding and reading, and what becomes of a folder that something happened to."""

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from caching.conftest import FACTS, answer, key, write
from streaming import StreamingDataset

from composer_distill.caching import index
from composer_distill.caching.manifest import Manifest, Recipe, to_json
from composer_distill.caching.packing import pack, pack_whole, unpack, unpack_whole
from composer_distill.caching.reader import Cache
from composer_distill.caching.shards import DATA
from composer_distill.caching.writer import PartWriter, finish, start
from composer_distill.cli import main


def read(cache, numbers):
    places = cache.find(np.stack([key(n) for n in numbers]))
    return [unpack_whole(row, torch.float32) for row in cache.rows(places.tolist())]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
@pytest.mark.parametrize("shape", [(0,), (3,), (4, 0), (70, 9)])
def test_a_tensor_comes_back_as_it_went(dtype, shape):
    tensor = (10 * torch.randn(shape)).to(dtype)
    back = unpack(pack(tensor), dtype, shape)
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_every_answer_is_found_by_its_key_and_no_other(folder):
    cache = Cache(folder)
    assert cache.manifest.samples == 18
    assert len(cache.manifest.shards) == 3
    numbers = [17, 3, 3, 0, 11, 12]
    for number, found in zip(numbers, read(cache, numbers), strict=True):
        assert torch.equal(found, answer(number))
    strangers = np.stack([key(18), np.array([0, 1], np.uint64), np.array([9, 9], np.uint64)])
    assert (cache.find(strangers) == index.MISSING).all()


def test_streaming_reads_a_cache_as_one_data_set(folder):
    rows = list(StreamingDataset(local=str(folder), shuffle=False, batch_size=1))
    assert [np.frombuffer(row["key"], np.uint64)[1] for row in rows] == list(range(18))
    assert torch.equal(unpack_whole(rows[7], torch.float32), answer(7))


def test_a_key_that_is_written_twice_is_kept_once(tmp_path):
    manifest = write(tmp_path / "cache", [1, 2, 2, 1])
    assert manifest.samples == 2
    assert write(tmp_path / "cache", [2, 3], part=1).samples == 3


def test_memory_that_was_mapped_is_given_back(folder, monkeypatch):
    monkeypatch.setattr("composer_distill.caching.reader._READ_AT_MOST", 1)
    cache = Cache(folder)
    for _ in range(2):
        assert torch.equal(read(cache, [5])[0], answer(5))


def mapped():
    """Return how much of files lies in this process's memory, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssFile:\s+(\d+) kB", status)[1])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("limit", "bounded"), [(4 << 20, True), (1 << 40, False)])
def test_reading_takes_a_bounded_memory_whatever_the_size(tmp_path, monkeypatch, limit, bounded):
    monkeypatch.setattr("composer_distill.caching.reader._READ_AT_MOST", limit)
    start(tmp_path / "cache", Recipe("a teacher"))
    writer = PartWriter(tmp_path / "cache", 0, 8 << 20)
    noise = torch.randint(0, 1 << 30, (48, 1 << 18), dtype=torch.int32)  # does not compress
    for number, values in enumerate(noise):
        facts = {**FACTS, "classes": 1 << 18, "dtype": "int32"}
        writer.add(key(number), pack_whole(values), 1, None, facts)
    writer.flush()
    writer.close()
    finish(tmp_path / "cache", Recipe("a teacher"))
    cache = Cache(tmp_path / "cache")
    before, most = mapped(), 0
    for number in range(48):
        cache.rows(cache.find(key(number)[None]).tolist())
        most = max(most, mapped() - before)
    assert (most < 24 << 20) == bounded  # of 48 MiB
    assert bounded or most > 40 << 20


def killed(folder, until):
    """Write two shards and half of a third, and die as a process that is killed."""
    start(folder, Recipe("a teacher"))
    writer = PartWriter(folder, 0, 6 * 20)
    for number in range(until):
        writer.add(key(number), pack_whole(answer(number)), 1, None, FACTS)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def broken_off(tmp_path):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=killed, args=(tmp_path / "cache", 15))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return tmp_path / "cache"


def test_a_killed_run_goes_on_and_loses_the_last_shard_alone(broken_off):
    with pytest.raises(ValueError, match="is an unfinished cache: 12 samples are in it"):
        Cache(broken_off)
    part = Cache(broken_off, unfinished=True)
    assert part.manifest.samples == 12
    assert torch.equal(read(part, [11])[0], answer(11))
    writer = PartWriter(broken_off, 0)
    assert writer.known == 12
    assert writer.lacks(np.stack([key(11), key(12)])).tolist() == [False, True]
    writer.close()
    assert write(broken_off, range(20)).samples == 20
    assert torch.equal(read(Cache(broken_off), [19])[0], answer(19))


def test_another_teachers_cache_is_left_as_it_is(folder):
    before = {path: path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    recipe = Recipe("another teacher", "top_k", 8, 1.0)
    with pytest.raises(ValueError, match="teacher 'a teacher' where now it is 'another teacher'"):
        write(folder, [1], recipe=recipe)
    with pytest.raises(
        ValueError, match="holds a cache with whole logits where now it is top_k=8;"
    ):
        write(folder, [1], recipe=recipe)
    assert before == {path: path.read_bytes() for path in before}


def test_a_cache_without_an_answer_may_be_begun_otherwise(tmp_path):
    start(tmp_path / "cache", Recipe("a teacher", "top_k", 5000, 1.0))
    few = Recipe("a teacher", "top_k", 16, 2.0)
    assert start(tmp_path / "cache", few) == few
    writer = PartWriter(tmp_path / "cache", 0)  # somebody is at work
    with pytest.raises(ValueError, match=r"with top_k=16 where now it is samples=5\. Nothing"):
        start(tmp_path / "cache", Recipe("a teacher", "samples", 5, 2.0, 0))
    writer.add(key(0), pack_whole(answer(0)), 1, None, FACTS)
    writer.flush()
    writer.close()
    with pytest.raises(ValueError, match=r"with temperature 2\.0 where now it is 1\.0\. Nothing"):
        start(tmp_path / "cache", Recipe("a teacher", "top_k", 16, 1.0))


def test_a_teacher_in_composers_wrapper_goes_on_with_its_own_cache(tmp_path):
    bare, wrapped = (f"{kind}, 8 parameters, abc" for kind in ("GPT2Model", "HuggingFaceModel"))
    write(tmp_path / "cache", range(3), recipe=Recipe(bare))
    before = Cache(tmp_path / "cache").identity()
    assert start(tmp_path / "cache", Recipe(wrapped)) == Recipe(bare)
    finish(tmp_path / "cache", start(tmp_path / "cache", Recipe(wrapped)))
    assert Cache(tmp_path / "cache").identity() == before
    for other in ("HuggingFaceModel, 8 parameters, abd", "BertModel, 8 parameters, abc"):
        with pytest.raises(ValueError, match="teacher 'GPT2Model, 8 parameters, abc' where now"):
            start(tmp_path / "cache", Recipe(other))


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("do not lose")
    with pytest.raises(FileExistsError, match="holds files and no cache"):
        write(tmp_path, [1])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_writers_of_one_part_are_refused(folder):
    writer = PartWriter(folder, 0)
    with pytest.raises(RuntimeError, match="another process writes this cache"):
        PartWriter(folder, 0)
    PartWriter(folder, 1).close()
    writer.close()
    PartWriter(folder, 0).close()


def fill(folder, pipe):
    """Write until the system says that there is no room for more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    start(folder, Recipe("a teacher"))
    writer = PartWriter(folder, 0, 6 * 20)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900, 900))
    try:
        for number in range(300):
            if number == 6:
                writer._limit = 1 << 12
            writer.add(key(number), pack_whole(answer(number)), 1, None, FACTS)
    except OSError as error:
        pipe.send(str(error))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_loses_nothing_that_was_written(tmp_path):
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=fill, args=(tmp_path / "cache", there))
    process.start()
    process.join()
    assert here.poll(1)
    said = here.recv()
    assert "can't be written to (File too large). 6 samples are safe in it" in said
    assert os.strerror(errno.EFBIG) in said
    assert Cache(tmp_path / "cache", unfinished=True).manifest.samples == 6
    assert not list(tmp_path.rglob("*.tmp"))
    assert write(tmp_path / "cache", range(20)).samples == 20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_is_told_and_what_was_written_stays(small_disk):
    with pytest.raises(OSError, match="No space left on device.* samples are safe in it"):
        write(small_disk / "cache", range(20_000), shard_bytes=6 * 400)
    there = Cache(small_disk / "cache", unfinished=True)
    assert there.manifest.samples > 0
    numbers = range(there.manifest.samples)
    assert len(read(there, numbers)) == len(numbers)
    assert not list(small_disk.rglob("*.tmp"))


def test_a_flipped_byte_is_found(folder):
    path = folder / "part-00001" / "shard-00000" / DATA
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    cache = Cache(folder)
    assert torch.equal(read(cache, [0])[0], answer(0))
    with pytest.raises(ValueError, match=r"part-00001/.*was changed since it was written"):
        read(cache, [17])


@pytest.mark.parametrize("name", ["index.npy", "manifest.json"])
def test_a_damaged_index_or_manifest_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-9])
    with pytest.raises(ValueError, match=f"its {name} is"):
        Cache(folder)


def test_a_missing_shard_is_told_before_training(folder):
    (folder / "part-00000" / "shard-00001" / DATA).unlink()
    with pytest.raises(FileNotFoundError, match=r"part-00000/shard-00001/.*is missing"):
        Cache(folder)


def test_a_shard_that_was_deleted_with_its_folder_is_written_again(folder):
    for path in (folder / "part-00000" / "shard-00001").iterdir():
        path.unlink()
    (folder / "part-00000" / "shard-00001").rmdir()
    assert write(folder, range(18)).samples == 18
    assert torch.equal(read(Cache(folder), [8])[0], answer(8))


def test_a_manifest_of_a_newer_version_is_refused(folder):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    for use in (lambda: Cache(folder), lambda: start(folder, Recipe("a teacher"))):
        with pytest.raises(ValueError, match="of version 2, and this release reads version 1"):
            use()


def test_a_folder_without_a_cache_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no cache of teachers' answers at"):
        Cache(tmp_path)


def test_answers_of_unlike_kinds_make_no_cache(tmp_path):
    start(tmp_path / "cache", Recipe("a teacher"))
    writer = PartWriter(tmp_path / "cache", 0)
    writer.add(key(0), pack_whole(answer(0)), 1, None, FACTS)
    writer.add(key(1), pack_whole(torch.zeros(4)), 1, None, {**FACTS, "classes": 4})
    writer.flush()
    writer.close()
    with pytest.raises(ValueError, match="its answers differ in classes"):
        finish(tmp_path / "cache", Recipe("a teacher"))


@pytest.mark.parametrize("name", ["../elsewhere", "/tmp", "a/../../b"])
def test_a_manifest_names_no_shard_elsewhere(tmp_path, name):
    """A cache may come from somebody else."""
    manifest = Manifest(Recipe(kind="logits", teacher="x"), finished=True, index="0")
    entries = json.loads(to_json(manifest))
    entries["shards"] = {name: {"samples": 1, "bytes": 1, "checksum": "0"}}
    (tmp_path / "manifest.json").write_text(json.dumps(entries))
    with pytest.raises(ValueError, match=r"is damaged \(the shard .* lies outside of it\)"):
        Cache(tmp_path)


def test_what_a_manifest_says_steers_no_terminal(tmp_path, capsys):
    manifest = Manifest(Recipe(kind="logits", teacher="\x1b[2J" + "x" * 10**6), finished=True)
    (tmp_path / "manifest.json").write_text(to_json(manifest))
    assert main(["inspect", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(shown) < 5000


@pytest.mark.parametrize(("key", "value"), [("bytes", "x"), ("versions", 3), ("shards", [1])])
def test_a_manifest_of_another_form_is_refused_in_words(tmp_path, key, value, capsys):
    entries = json.loads(to_json(Manifest(Recipe(kind="logits", teacher="x"), finished=True)))
    (tmp_path / "manifest.json").write_text(json.dumps({**entries, key: value}))
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path)])
    assert "PATH: " in capsys.readouterr().err
