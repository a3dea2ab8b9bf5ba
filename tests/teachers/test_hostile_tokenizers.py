"""Tokenizers that open what lies elsewhere, fill the memory, look for ever or write to a terminal.

Each is told as a tokenizer that could not be read. Where nothing stopped them, they would be read
here, at some cost: the real ones ended the process.
"""

import base64
import json

import pytest

from composer_distill.teachers import tokenizer_files
from composer_distill.teachers.tokenizers import folder_tokenizer, stored_tokenizer
from composer_distill.weights.errors import clean_errors

PLAIN = {
    "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"a": 0, "?": 1}, "unk_token": "?"},
    "added_tokens": [
        {"id": 2, "content": "ab", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": True, "special": False},
    ],
}  # fmt: skip
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def write(folder, settings=None, **changes):
    (folder / "tokenizer.json").write_text(json.dumps(PLAIN | changes))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings or FAST))
    return str(folder)


def replace(content, **pattern):
    return {"type": "Replace", "pattern": pattern, "content": content}


def steps(*steps):
    return {"type": "Sequence", "normalizers": list(steps)}


def charsmap(longest):
    data = (4).to_bytes(4, "little") + bytes(4) + b"x" * longest + b"\0"
    return {
        "type": "Precompiled",
        "precompiled_charsmap": base64.b64encode(data).decode(),
    }


def test_a_plain_one_is_read(tmp_path):
    assert folder_tokenizer(write(tmp_path), "it").get_vocab() == {"a": 0, "?": 1, "ab": 2}


GROWING = {
    "twice": steps(replace("a" * 75, String="a"), replace("a" * 75, String="a")),
    "between letters": steps(*[replace("aa", Regex="a?")] * 8),
    "by what is put before": steps(*[{"type": "Prepend", "prepend": "a" * 20}] * 3),
    "by bytes": steps(*[{"type": "ByteLevel"}] * 11),
    "by a map": charsmap(2000),
}


@pytest.mark.parametrize("name", GROWING)
def test_normalisers_that_make_texts_grow(tmp_path, caplog, name):
    """Four of a hundred letters each ended the process: added words are normalised at once."""
    assert folder_tokenizer(write(tmp_path, normalizer=GROWING[name]), "it") is None
    assert "its tokenizer.json makes texts more than 1000 times longer" in caplog.text


def test_keys_that_are_given_twice_all_count(tmp_path, caplog):
    write(tmp_path, normalizer=replace("a", String="a"))
    file = tmp_path / "tokenizer.json"
    twice = '"content": "' + "a" * 2000 + '", "content": "a"'
    file.write_text(file.read_text().replace('"content": "a"', twice))
    assert folder_tokenizer(str(tmp_path), "it") is None
    assert "more than 1000 times longer" in caplog.text


@pytest.mark.parametrize("expression", ["(a|a|a?)+$", "a*a*a*b", "(?:x)"])
def test_expressions_that_may_be_looked_for_without_an_end(tmp_path, caplog, expression):
    write(tmp_path, normalizer=replace("x", Regex=expression))
    assert folder_tokenizer(str(tmp_path), "it") is None
    assert "which may be looked for without an end" in caplog.text


def test_what_real_ones_normalise_by_is_let_through(tmp_path):
    """T5's and DeBERTa's expressions, Llama's letter, and an expression that splits."""
    real = steps(
        charsmap(33),
        replace("▁", Regex=" {2,}"),
        replace("▁", Regex=r"\s{2,}|[\n\r\t]"),
        replace("▁", String=" "),
        replace('"', String="``"),
        {"type": "Prepend", "prepend": "▁"},
    )
    split = {"type": "Split", "pattern": {"Regex": r"(?i:'s|'t)| ?\w+|\s+"}}
    write(tmp_path, normalizer=real, pre_tokenizer=split | {"behavior": "Isolated", "invert": True})
    tokenizer_files.check_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("kind", "key"),
    [("T5TokenizerFast", "extra_ids"), ("PegasusTokenizerFast", "offset"), ("ByT5Tokenizer", "n")],
)
def test_words_without_an_end(tmp_path, caplog, kind, key):
    write(tmp_path, {"tokenizer_class": kind, "more": {key: 1_000_001}})
    assert folder_tokenizer(str(tmp_path), "it") is None
    assert f"its tokenizer_config.json asks for 1000001 under more.{key}" in caplog.text


@pytest.mark.parametrize(
    "setting",
    [
        {"model_max_length": 10**30},
        {"vocab_size": 901_629},
        {"chat_template": "x" * 600},  # longer than a name may be that the system looks for
        {"name_or_path": "/"},
    ],
)
def test_what_real_settings_say_is_let_through(tmp_path, setting):
    assert folder_tokenizer(write(tmp_path, FAST | setting), "it") is not None


@pytest.mark.parametrize("file", tokenizer_files.SETTINGS)
@pytest.mark.parametrize("elsewhere", ["device", "file"])
def test_what_lies_elsewhere_is_not_opened(tmp_path, caplog, file, elsewhere):
    """A pipe that nobody writes to, or a device without an end, was read on and on."""
    secret = tmp_path / "secret.txt"
    secret.write_text("[UNK]\nSECRET\n")
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[UNK]\n")
    named = {"vocab_file": str(secret) if elsewhere == "file" else "/dev/null"}
    for name in tokenizer_files.SETTINGS:
        told = {"tokenizer_class": "BertTokenizer"} if "config" in name else {}
        (folder / name).write_text(json.dumps(told | (named if name == file else {})))
    assert folder_tokenizer(str(folder), "it") is None
    assert f"its {file} names a file elsewhere under vocab_file" in caplog.text


def test_a_stored_tokenizer_is_looked_at_too(caplog):
    settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 10**9}
    files = {"tokenizer_config": {"file_extension": ".json", "content": settings}}
    assert stored_tokenizer({"integrations": {"huggingface": {"tokenizer": files}}}, "it") is None
    assert "asks for 1000000000 under extra_ids" in caplog.text


def test_names_reach_no_terminal(tmp_path, caplog):
    write(tmp_path, {"tokenizer_class": "\x1b[2J" + "x" * 100_000})
    assert folder_tokenizer(str(tmp_path), "it") is None
    assert "Tokenizer class ?[2J" in caplog.text
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 3000


def test_a_library_in_rust_that_gives_up_is_an_error_as_others(monkeypatch, tmp_path, caplog):
    """Its panic is no Exception."""
    from tokenizers import Regex, normalizers

    def panic(*arguments, **options):
        normalizers.Replace(Regex("(a|a|a?)+$"), "x").normalize_str("a" * 40 + "b")

    with pytest.raises(ValueError, match="it cannot be read .PanicException: "), clean_errors():
        panic()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    assert folder_tokenizer(write(tmp_path), "it") is None
    assert "PanicException" in caplog.text
