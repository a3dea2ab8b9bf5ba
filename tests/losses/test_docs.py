"""Every loss has a page, and the code on it runs."""

import inspect
import re
from pathlib import Path

import pytest

from composer_distill import losses

DOCS = Path(__file__).parents[2] / "docs" / "losses"
WITHOUT_PAGE = ("DistillationLoss", "FeatureLoss", "WeightedSum")
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_runs(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S):
        exec(compile(block, str(page), "exec"), {})


def test_every_loss_has_a_page():
    text = "\n".join(page.read_text().split("##")[0] for page in PAGES)
    for name in losses.__all__:
        if inspect.isclass(getattr(losses, name)) and name not in WITHOUT_PAGE:
            assert f"`composer_distill.losses.{name}`" in text
