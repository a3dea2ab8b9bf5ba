"""The page of the on-policy benchmark shows its committed JSON."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as `python -m tests.benchmarks.on_policy` has it

from tests.benchmarks import on_policy  # noqa: E402

PAGE = (ROOT / "docs" / "on-policy-benchmark.md").read_text("utf-8")
DOCUMENT = json.loads((ROOT / "docs" / "on-policy-benchmark.json").read_text("utf-8"))
LOSSES = {"new-texts": {*on_policy.LOSSES, None}, "few-texts": {"reverse KL"}}
SEEDS = {"new-texts": (1, 2, 3), "few-texts": (1, 2)}


@pytest.mark.parametrize("part", LOSSES)
def test_the_page_shows_its_json(part):
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    shown = PAGE.partition(begin)[2].partition(end)[0].strip()
    assert shown == on_policy.shown(DOCUMENT[part])


@pytest.mark.parametrize("part", LOSSES)
def test_every_row_and_seed_was_run(part):
    found = [(run["row"], run["seed"]) for run in DOCUMENT[part]["runs"]]
    rows = [row.name for row in on_policy.ROWS if row.loss in LOSSES[part]]
    assert sorted(found) == sorted((row, seed) for row in rows for seed in SEEDS[part])


def test_the_settings_are_those_of_the_script_but_for_what_the_page_says():
    for part, texts in (("new-texts", 0), ("few-texts", 64)):
        expected = {**asdict(on_policy.Settings()), "steps": 200, "texts": texts}
        assert DOCUMENT[part]["settings"] == expected
        assert ("--steps 200" + (f" --texts {texts}" if texts else "")) in PAGE


def test_the_how_to_points_here():
    how_to = (ROOT / "docs" / "how-to-on-policy.md").read_text("utf-8")
    assert "](on-policy-benchmark.md" in how_to.partition("## When it does not help")[2]
