"""What can be known of the site without building it: links, contents, and that nothing is lost."""

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path

import pytest

import composer_distill
from composer_distill import losses

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md"))
HOW_TOS = (
    *("images", "masked-language", "language", "several-teachers", "schedules", "object-store"),
    *("fsdp", "resume", "read-the-logs", "choose", "no-gain"),
)


def entries(page):
    """The pages that a page's toctrees name, relative to docs, in order."""
    text = (DOCS / f"{page}.md").read_text()
    found = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```", text, re.M | re.S):
        lines = [line.strip() for line in block.splitlines()]
        for name in (line for line in lines if line and not line.startswith(":")):
            pattern = (Path(page).parent / name).as_posix()
            pages = [each for each in PAGES if fnmatch(each, pattern) and each != page]
            found += [each for each in pages if each not in found]
    return found


def reachable(page="index"):
    below = [name for entry in entries(page) for name in reachable(entry)]
    return [page, *below]


def test_every_page_stands_once_in_the_contents():
    assert sorted(reachable()) == PAGES


@pytest.mark.parametrize("name", HOW_TOS)
def test_every_how_to_is_there(name):
    assert f"how-to-{name}" in PAGES


@pytest.mark.parametrize("source", ["README.md", *(f"docs/{page}.md" for page in PAGES)])
def test_relative_links_lead_to_files(source):
    text = re.sub(r"^```.*?^```", "", (ROOT / source).read_text(), flags=re.M | re.S)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    for target in (t for t in targets if not re.match(r"https?://|#", t)):
        assert (ROOT / source).parent.joinpath(target.split("#")[0]).is_file(), target


def test_the_picture_of_a_batch_is_what_its_script_draws():
    drawn = runpy.run_path(str(DOCS / "batch_picture.py"))["draw"]()
    assert (DOCS / "images" / "batch.svg").read_text(encoding="utf-8") == drawn


def test_every_public_name_is_in_the_reference():
    text = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    documented = set(re.findall(r":: composer_distill\.(?:losses\.)?(\w+)$", text, re.M))
    assert documented == {*composer_distill.__all__, *losses.__all__}
