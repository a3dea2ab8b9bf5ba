import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread

import composer_distill
from composer_distill.demo.experiment import ALONE, DISTILLED, FEW_ALONE, FEW_DISTILLED


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Run the real command once, in a directory and with a temporary directory of its own."""
    directory = tmp_path_factory.mktemp("demo")
    (directory / "tmp").mkdir()
    root = str(Path(composer_distill.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "TMPDIR": str(directory / "tmp")}
    command = [sys.executable, "-m", "composer_distill", "demo", "--fast"]
    process = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=400
    )
    assert process.returncode == 0, process.stderr
    return directory, process


@pytest.fixture
def numbers(demo):
    directory, _ = demo
    return json.loads((directory / "composer-distill-demo" / "demo.json").read_text("utf-8"))


def line_of(output, start, occurrence=0):
    lines = [line for line in output.splitlines() if line.strip().startswith(start)]
    return lines[occurrence]


def test_it_writes_three_files_and_leaves_nothing_else(demo):
    directory, _ = demo
    names = {path.name for path in (directory / "composer-distill-demo").iterdir()}
    assert names == {"teacher.pt", "demo.png", "demo.json"}
    assert list((directory / "tmp").iterdir()) == []
    assert {path.name for path in directory.iterdir()} == {"tmp", "composer-distill-demo"}


def test_it_warns_of_nothing(demo):
    _, process = demo
    assert "Warning" not in process.stderr
    assert "Traceback" not in process.stderr


def test_it_says_that_a_smoke_run_is_no_result(demo):
    _, process = demo
    assert process.stdout.count("No result") == 2


def test_the_table_prints_the_numbers_of_the_file(demo, numbers):
    _, process = demo
    for alone, distilled in ((ALONE, DISTILLED), (FEW_ALONE, FEW_DISTILLED)):
        for arm in (alone, distilled):
            summary, line = numbers["summary"][arm], line_of(process.stdout, arm)
            for metric, factor, digits in (("accuracy", 100, 2), ("nll", 1, 3)):
                mean, sd = (factor * summary[metric][key] for key in ("mean", "sd"))
                assert f"{mean:.{digits}f} ± {sd:.{digits}f}" in line
    for occurrence, arm in enumerate((DISTILLED, FEW_DISTILLED)):
        change = numbers["differences"][arm]["nll"]
        expected = f"{change['mean']:+.3f} ± {change['sd']:.3f} ({change['wins']}/2)"
        assert expected in line_of(process.stdout, "difference", occurrence)


def test_the_file_holds_every_run_and_what_it_depends_on(numbers):
    assert len(numbers["runs"]) == 1 + 2 * 4
    assert numbers["settings"]["smoke"] is True
    assert numbers["versions"]["composer-distill"] == composer_distill.__version__
    students = [run for run in numbers["runs"] if run["arm"] != "teacher"]
    assert all(len(run["curve"]) == numbers["settings"]["points"] for run in students)
    assert all(run["seconds"] > 0 for run in numbers["runs"])


def test_the_summary_follows_from_the_runs(numbers):
    by_arm = {
        arm: [run["scores"]["nll"] for run in numbers["runs"] if run["arm"] == arm]
        for arm in (ALONE, DISTILLED)
    }
    assert numbers["summary"][ALONE]["nll"]["mean"] == pytest.approx(sum(by_arm[ALONE]) / 2)
    changes = [b - a for a, b in zip(by_arm[ALONE], by_arm[DISTILLED], strict=True)]
    assert numbers["differences"][DISTILLED]["nll"]["mean"] == pytest.approx(sum(changes) / 2)


def test_the_picture_shows_something(demo):
    directory, _ = demo
    path = directory / "composer-distill-demo" / "demo.png"
    pixels = imread(path)
    assert path.stat().st_size < 150_000
    assert pixels.shape[1] > 1000
    assert len({tuple(pixel) for pixel in pixels.reshape(-1, 4)[::7]}) > 50
