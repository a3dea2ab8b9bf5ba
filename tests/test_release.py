"""What is released: the wheel and the source distribution, as they are built."""

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import composer_distill

ROOT = Path(__file__).parent.parent
VERSION = composer_distill.__version__
NAME = f"composer_distill-{VERSION}"


def build(source, folder):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=source,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    with zipfile.ZipFile(built / f"{NAME}-py3-none-any.whl") as file:
        return {name: file.read(name) for name in file.namelist()}


def unpack(built, folder):
    with tarfile.open(built / f"{NAME}.tar.gz") as file:
        # a filter is what newer Pythons ask for, and what 3.10.0 to 3.10.11 do not know
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        file.extractall(folder, **safely)
    return folder / NAME


def test_two_files_are_built(built):
    assert sorted(path.name for path in built.iterdir()) == [
        f"{NAME}-py3-none-any.whl",
        f"{NAME}.tar.gz",
    ]


def test_the_wheel_holds_the_package_its_mark_of_types_and_the_licence_alone(wheel):
    package = [path.relative_to(ROOT) for path in (ROOT / "composer_distill").rglob("*.py")]
    described = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    assert sorted(wheel) == sorted(
        [path.as_posix() for path in package]
        + ["composer_distill/py.typed"]
        + [f"{NAME}.dist-info/{name}" for name in described]
    )
    assert wheel[f"{NAME}.dist-info/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_source_distribution_holds_what_it_takes_to_test_it_and_nothing_else(built, tmp_path):
    source = unpack(built, tmp_path)
    assert {path.name for path in source.iterdir()} == {
        ".ci",
        ".gitignore",
        "LICENSE",
        "PKG-INFO",
        "README.md",
        "composer_distill",
        "docs",
        "pyproject.toml",
        "tests",
    }
    kinds = {path.suffix for path in source.rglob("*") if path.is_file()}
    assert kinds <= {"", ".css", ".json", ".md", ".png", ".py", ".svg", ".toml", ".typed"}


def test_a_wheel_from_the_source_distribution_is_the_one_from_the_tree(built, wheel, tmp_path):
    build(unpack(built, tmp_path), tmp_path / "again")
    with zipfile.ZipFile(tmp_path / "again" / f"{NAME}-py3-none-any.whl") as file:
        assert {name: file.read(name) for name in file.namelist()} == wheel


def test_the_metadata_is_valid_and_says_what_is_tested(wheel):
    metadata = Metadata.from_email(wheel[f"{NAME}.dist-info/METADATA"], validate=True)
    assert str(metadata.version) == VERSION
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE"]
    assert metadata.description_content_type == "text/markdown"
    readme = (ROOT / "README.md").read_text()
    assert metadata.description.strip() == readme.strip()
    prefix = "Programming Language :: Python :: 3."
    minors = [line.removeprefix(prefix) for line in metadata.classifiers if prefix in line]
    assert minors == ["10", "11", "12", "13"]
    assert metadata.requires_python.contains("3.10.0")
    assert f"Python (3.{minors[0]} to 3.{minors[-1]})" in readme


def test_the_wheel_is_for_every_platform(wheel):
    tags = email.message_from_bytes(wheel[f"{NAME}.dist-info/WHEEL"])
    assert tags["Tag"] == "py3-none-any"
    assert tags["Root-Is-Purelib"] == "true"
