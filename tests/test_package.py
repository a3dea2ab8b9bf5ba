import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import composer_distill

MODULES = [
    module.name
    for module in pkgutil.walk_packages(composer_distill.__path__, "composer_distill.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_public_names_exist_and_are_documented():
    for name in composer_distill.__all__:
        assert getattr(composer_distill, name).__doc__


def test_import_is_silent():
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", "import composer_distill"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == result.stderr == ""
