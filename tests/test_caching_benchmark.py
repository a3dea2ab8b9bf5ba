"""The page of the cached teachers' benchmark shows its committed JSON."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # as `python -m tests.benchmarks.caching` has it

from tests.benchmarks import caching, caching_speed  # noqa: E402

DOCS = ROOT / "docs"
PARTS = {
    "quality": (caching, "caching-benchmark.json"),
    "speed": (caching_speed, "caching-speed.json"),
}


@pytest.mark.parametrize("part", PARTS)
def test_the_page_shows_its_json(part):
    module, name = PARTS[part]
    page = (DOCS / "caching-benchmark.md").read_text("utf-8")
    document = json.loads((DOCS / name).read_text("utf-8"))
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    assert page.partition(begin)[2].partition(end)[0].strip() == module.shown(document)


def test_every_row_and_seed_of_the_script_was_run():
    document = json.loads((DOCS / "caching-benchmark.json").read_text("utf-8"))
    found = {(run["row"], run["seed"]) for run in document["runs"]}
    assert found == {(row, seed) for row in caching.ROWS for seed in range(caching.SEEDS)}
    settings = document["settings"]
    assert settings["steps"] == caching.STEPS
    assert settings["teacher_steps"] == caching.TEACHER_STEPS
