"""What leaves a reader: a ValueError or OSError with the teacher, the source and a remedy."""

import errno
import json
import pickle
import struct
import zipfile

import pytest
import torch
from torch import nn

from composer_distill.teachers import Teacher, load_weights
from composer_distill.weights.errors import clean_errors, named_errors, plain, without_secrets
from composer_distill.weights.inspection import describe

RAW = [
    zipfile.BadZipFile("bad"), AttributeError("x"), KeyError("x"), IndexError("x"), TypeError("x"),
    RuntimeError("x"), NotImplementedError("x"), RecursionError("x"), MemoryError(), EOFError(),
    AssertionError(), pickle.UnpicklingError("x"), struct.error("x"), OverflowError("x"),
    ZeroDivisionError("x"), StopIteration(),
]  # fmt: skip


@pytest.mark.parametrize("raw", RAW, ids=lambda raw: type(raw).__name__)
def test_whatever_a_reader_raises_leaves_as_a_value_error(raw):
    with (
        pytest.raises(
            ValueError, match=f"^the expert: a.pt: it cannot be read .{type(raw).__name__}"
        ) as e,
        named_errors("the expert", "a.pt"),
    ):
        raise raw
    assert e.value.__cause__ is not None
    assert str(e.value).endswith("; save or download it again, or name another")


@pytest.mark.parametrize(
    ("raw", "kind", "text"),
    [
        (OSError(errno.ENOSPC, "No space left"), OSError, "no space left; free some room"),
        (OSError(errno.EIO, "Input/output error"), OSError, "input/output error; check the path"),
        (PermissionError(errno.EACCES, "Denied"), PermissionError, "denied; let this user read it"),
        (IsADirectoryError(errno.EISDIR, "Is one"), IsADirectoryError, "is one; check the path"),
        (TimeoutError("late"), TimeoutError, "late; check the path"),
    ],
)
def test_what_the_system_says_keeps_its_kind_and_number(raw, kind, text):
    with (
        pytest.raises(kind, match=f"^the expert: cannot read a.pt: {text}") as caught,
        named_errors("the expert", "a.pt"),
    ):
        raise raw
    assert caught.value.errno == raw.errno


def test_a_kind_of_another_package_becomes_an_os_error():
    class Foreign(OSError):
        def __init__(self, one, two):
            super().__init__(one)

    with (
        pytest.raises(OSError, match="the expert: cannot read a.pt: x") as caught,
        named_errors("the expert", "a.pt"),
    ):
        raise Foreign("x", 2)
    assert type(caught.value) is OSError


def test_an_interruption_leaves_as_it_is():
    with pytest.raises(KeyboardInterrupt, match=r"^as it was$"), named_errors("the expert", "a.pt"):
        raise KeyboardInterrupt("as it was")
    with pytest.raises(UnicodeError), clean_errors():
        b"\xff".decode()


@pytest.mark.parametrize("kind", [ImportError, ModuleNotFoundError])
@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("No module named 'x'", "No module named 'x'; install what is missing"),
        ("it needs x: pip install x. Now", "it needs x: pip install x. Now"),
    ],
)
def test_a_package_that_is_missing_is_an_import_error_and_a_value_error(kind, raw, told):
    for caught in (ImportError, ValueError):
        with (
            pytest.raises(caught, match=f"^the expert: a.pt: {told}$"),
            named_errors("the expert", "a.pt"),
        ):
            raise kind(raw)


def test_a_quantiser_that_is_not_installed_is_told_with_the_teacher(zoo, tmp_path):
    zoo.bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "aqlm"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"^the expert: {tmp_path}: .*aqlm.*") as caught:
        Teacher.from_pretrained(tmp_path, name="the expert")
    assert isinstance(caught.value, ImportError)


def test_a_remedy_is_not_added_where_there_is_one():
    with (
        pytest.raises(ValueError, match=r"^the expert: a.pt: it is empty; copy it again$"),
        named_errors("the expert", "a.pt"),
    ):
        raise ValueError("it is empty; copy it again")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@b/a.pt", "s3://***@b/a.pt"),
        ("s3://key:se/cr/et@b/a.pt twice", "s3://***@b/a.pt twice"),
        ("https://token@host/a?x=1&y=2 is", "https://***@host/a?*** is"),
        ("s3://b/run #1/what?/a b", "s3://b/run #1/what?/a b"),
        ("s3://b/a:b@c.pt", "s3://b/a:b@c.pt"),
        ("a@b.c/d", "a@b.c/d"),
    ],
)
def test_secrets_are_hidden_and_names_are_not(text, shown):
    assert without_secrets(text) == shown


def test_text_of_a_file_cannot_steer_a_terminal_or_fill_it():
    assert plain("a\x1b[31m\n\u202e\x00b") == "a?[31m???b"
    assert len(plain("x" * 10_000_000)) == 200


KEY = "\x1b[31mw" + "x" * 1_000_000


@pytest.mark.parametrize("state", [{KEY: torch.ones(2)}, {KEY + ".weight": torch.ones(2)}])
def test_keys_of_a_file_reach_no_terminal(tmp_path, state, caplog):
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_weights(nn.Linear(2, 2), tmp_path / "a.pt")
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 8000
    torch.save(nn.Linear(2, 2).state_dict() | state, tmp_path / "a.pt")
    load_weights(nn.Linear(2, 2), tmp_path / "a.pt", strict=False)
    assert "\x1b" not in caplog.text
    assert len(caplog.text) < 8000


@pytest.mark.parametrize("name", [None, "the expert"])
def test_from_pretrained_names_the_teacher_and_the_folder(zoo, tmp_path, name, monkeypatch):
    zoo.bert().save_pretrained(tmp_path)

    def broken(*arguments, **options):
        raise AttributeError("'NoneType' object has no attribute 'get'")

    monkeypatch.setattr("transformers.BertForSequenceClassification.from_pretrained", broken)
    with pytest.raises(
        ValueError, match=rf"^{name or 'from_pretrained'}: {tmp_path}: it cannot be"
    ):
        Teacher.from_pretrained(tmp_path, name=name)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"", b"NaN NaN"])
def test_a_configuration_that_is_no_json_is_named(zoo, tmp_path, content):
    zoo.bert().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"^the expert: {tmp_path}: its config.json is no JSON .*; copy or down"
    ):
        Teacher.from_pretrained(tmp_path, name="the expert")


def test_a_module_that_fails_to_load_itself(tmp_path):
    class Broken(nn.Linear):
        def _load_from_state_dict(self, *args):
            raise KeyError("x")

    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"the expert: .*a\.pt: the model refused it"):
        load_weights(Broken(2, 2), tmp_path / "a.pt", name="the expert")


@pytest.mark.parametrize("path", ["x" * 5000, "loop", "a.pt/b.pt"])
def test_paths_that_the_system_refuses(tmp_path, path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.pt").write_bytes(b"x")
    for read in (lambda p: load_weights(nn.Linear(2, 2), p, name="the expert"), describe):
        with pytest.raises(OSError, match="^(the expert|inspect): cannot read"):
            read(str(tmp_path / path))


def test_null_bytes_in_a_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^the expert: cannot read a\?b: there is no"):
        load_weights(nn.Linear(2, 2), "a\x00b", name="the expert")
