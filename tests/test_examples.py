"""The example scripts of the documentation, run on their small settings."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a script in an empty folder; return what it printed, by the name of each row."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # as for a script that is run

    def run(name):
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name))["main"](["--fast"])
        rows = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
        return {row[0]: [float(re.search(r"[\d.]+", cell)[0]) for cell in row[1:]] for row in rows}

    return run


def test_images(run, tmp_path):
    rows = run("images.py")
    assert list(rows) == ["teacher", "student alone", "student distilled"]
    assert all(accuracy > 80 for accuracy, _ in rows.values())
    assert rows["student alone"] != rows["student distilled"]

    # A second run reads the teacher's checkpoint instead of training it, and repeats the first
    saved = (tmp_path / "digits-teacher.pt").stat().st_mtime_ns
    assert run("images.py") == rows
    assert (tmp_path / "digits-teacher.pt").stat().st_mtime_ns == saved


def test_several_teachers(run):
    rows = run("several_teachers.py")
    assert list(rows) == [
        *("teacher 0", "teacher 1", "teacher 2", "student, alone", "student, one teacher"),
        *("student, mean of three", "student, one of three a step"),
    ]
    assert all(accuracy > 80 for accuracy, *_ in rows.values())
    assert len({tuple(row[:2]) for row in rows.values()}) == len(rows)


def test_causal_language_model(run):
    rows = run("causal_language_model.py")
    assert list(rows) == ["teacher", "student alone", "student distilled"]
    uniform = 4.6  # about ln 103, the number of characters
    assert all(nats < uniform - 0.5 for nats, _ in rows.values())
    # The distilled one never saw a label: what it knows of the text it has from the teacher
    assert rows["student distilled"][0] != rows["student alone"][0]


def test_student_from_teacher(run):
    rows = run("student_from_teacher.py")
    students = [
        f"{origin}, {how}" for origin in ("random", "copied") for how in ("alone", "distilled")
    ]
    assert list(rows) == ["teacher", "its two layers, untrained", *students]
    # Even a few steps tell copied weights from random ones
    assert rows["copied, alone"][0] < rows["random, alone"][0] - 0.3
    assert rows["copied, distilled"][0] < rows["random, distilled"][0] - 0.3


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_shown_and_tested(script):
    page = (EXAMPLES.parent / "examples.md").read_text()
    assert f"{{literalinclude}} examples/{script.name}" in page
    assert f'"{script.name}"' in Path(__file__).read_text()
