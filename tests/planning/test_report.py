"""What the command prints, and that the page shows it."""

import re
import shlex
from pathlib import Path

import pytest

from composer_distill import cli

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "how-to-scale.md").read_text("utf-8")
SHOWN = re.findall(r"```sh\ncomposer-distill (plan .*?)\n```\n\n```text\n(.*?)```", PAGE, re.DOTALL)
PLAN = ["plan", "--student", "1b", "--teacher", "8b", "--gpus", "8"]


@pytest.mark.parametrize(("command", "printed"), SHOWN, ids=[command for command, _ in SHOWN])
def test_the_page_shows_what_the_command_prints(command, printed, capsys):
    assert cli.main(shlex.split(command)) == 0
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == printed.splitlines()


def test_the_page_shows_its_cases():
    assert len(SHOWN) == PAGE.count("composer-distill plan --") == 4


def cells(text, name):
    """Return the cells of the first line of that name."""
    line = next(line for line in text.splitlines() if line.startswith(name))
    return line[len(name) :].split()


def test_parts_make_the_sum_and_the_sum_fits_or_not(capsys):
    cli.main([*PLAN, "--texts", "6"])
    text = capsys.readouterr().out
    block = text.split("\n\n")[1].splitlines()
    end = next(n for n, line in enumerate(block) if line.startswith("sum"))
    of_whole = [line[26:39].strip() for line in block[1:end]]
    parts = [float(cell) for cell in of_whole if cell]
    assert sum(parts) == pytest.approx(float(cells(text, "sum")[0]), abs=0.05 * len(parts) + 0.05)
    fits = dict(zip("wsboc", cells(text, "fits into 72 GiB"), strict=True))
    most = dict(zip("wsboc", map(int, cells(text, "most texts at a time")), strict=True))
    assert {name: "yes" if most[name] >= 6 else "no" for name in most} == fits
    assert set(fits.values()) == {"yes", "no"}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--utilisation", "0"], "--utilisation: needs a number above 0 and up to 1, got '0'"),
        (["--utilisation", "half"], "got 'half'"),
        (["--texts", "0"], "--texts: needs an integer of at least 1, got '0'"),
        (["--gpu", "b1000"], "invalid choice: 'b1000'"),
        (["--teacher", "large"], "--teacher needs one of 1b, 3b, 8b, 70b"),
    ],
)
def test_wrong_arguments_are_told(more, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*PLAN, *more])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
