"""Folders of tokenized texts, and the commands that read and write caches."""

import json

import numpy as np
import pytest
import torch
from streaming import MDSWriter
from transformers import GPT2Config, GPT2LMHeadModel

from composer_distill import CachedTeacher, cli
from composer_distill.caching.tokens import token_loader

TEXTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14]]
PADDED = [
    [[5, 6, 7], [8, 0, 0]],
    [[9, 10, 11, 12], [13, 14, 0, 0]],
]


def jsonl(folder):
    folder.mkdir()
    lines = [json.dumps({"input_ids": text}) for text in TEXTS]
    (folder / "a.jsonl").write_text("\n".join(lines[:3]) + "\n\n")
    (folder / "b.jsonl").write_text(lines[3])


def mds(folder, encoding="ndarray:int32", name="input_ids"):
    with MDSWriter(out=str(folder), columns={name: encoding}) as out:
        for text in TEXTS:
            array = np.array(text, np.int32)
            out.write({name: array if encoding != "bytes" else array.astype(np.int64).tobytes()})


WRITERS = {
    "jsonl": jsonl,
    "mds": mds,
    "tokens as LLM Foundry keeps them": lambda folder: mds(folder, "bytes", "tokens"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_becomes_padded_batches(kind, tmp_path):
    WRITERS[kind](tmp_path / "data")
    batches = list(token_loader(tmp_path / "data", 2))
    assert [batch["input_ids"].tolist() for batch in batches] == PADDED
    for batch in batches:
        assert batch["input_ids"].dtype == torch.int64
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
    short = next(iter(token_loader(tmp_path / "data", 4, max_length=2)))
    assert short["input_ids"].tolist() == [[5, 6], [8, 0], [9, 10], [13, 14]]


def test_folders_of_nothing_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no \*.jsonl and no index.json"):
        token_loader(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "not yet tokens"}))
    with pytest.raises(ValueError, match="has no input_ids and no tokens, but"):
        next(iter(token_loader(tmp_path)))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    config = GPT2Config(vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_the_command_writes_a_cache_that_students_read(model, tmp_path, capsys):
    jsonl(tmp_path / "data")
    arguments = ("cache", model, tmp_path / "data", tmp_path / "out", "--device", "cpu")
    assert run(*arguments, "--top-k", 5, "--batch-size", 3) == 0
    captured = capsys.readouterr()
    for line in (
        "a teacher's answers, finished",
        "kept: the 5 likeliest classes and the rest's probability, in float16",
        "samples: 4, positions: 10",
        "mean probability of the classes that are kept: 0.",
        "the teacher read: attention_mask, input_ids",
        "bytes a position: ",
    ):
        assert line in captured.out
    assert "positions/s" in captured.err
    assert CachedTeacher(tmp_path / "out").cache.manifest.samples == 4
    assert run("inspect", tmp_path / "out") == 0
    assert capsys.readouterr().out == captured.out
    assert run(*arguments, "--top-k", 5, "--batch-size", 2) == 0  # again, and nothing is lost
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, "--samples", 5)
    assert stopped.value.code == 2
    assert "a cache with top_k=5 where now it is samples=5. Nothing was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-k", 5, "--samples", 5), "not allowed with argument"),
        (("--top-k", 0), "needs an integer of at least 1"),
        (("--top-k", 21), "top_k must be at most the teacher's 20 classes, got 21"),
        (("--temperature", 0), "temperature must be finite and greater than 0"),
    ],
    ids=str,
)
def test_the_command_says_what_is_wrong(arguments, message, model, tmp_path, capsys):
    jsonl(tmp_path / "data")
    with pytest.raises(SystemExit) as stopped:
        run("cache", model, tmp_path / "data", tmp_path / "out", "--device", "cpu", *arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_cache_is_told(tmp_path, capsys):
    from composer_distill.caching.manifest import Recipe
    from composer_distill.caching.writer import start

    start(tmp_path / "cache", Recipe("a teacher", "samples", 12, 1.0, 0))
    assert run("inspect", tmp_path / "cache") == 0
    told = capsys.readouterr().out
    assert "a teacher's answers, UNFINISHED" in told
    assert "kept: 12 draws, seed 0" in told
