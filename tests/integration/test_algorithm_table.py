"""The documented table of algorithms says what the roster of the tests holds, and no more."""

import re
from pathlib import Path

from integration.test_algorithms import ALGORITHMS, RAISES

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"


def test_the_table_in_the_docs_is_the_roster():
    rows = re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", PAGE.read_text(), flags=re.MULTILINE)
    table = {name: result for name, result in rows if not name.startswith(("fp32", "amp_"))}
    assert {name for name, result in table.items() if result == "exact"} == set(ALGORITHMS)
    assert {name for name, result in table.items() if result.startswith("an error")} == set(RAISES)
