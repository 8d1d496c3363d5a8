"""The versions of other packages: the bounds are those that CI has seen, and here they hold.

SECATEURS_SEEN=oldest or newest says that this environment is meant to have that end of them."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
SEEN_ROW = re.compile(r'^(\w+) = \["([\d.]+)", "([\d.]+)"\]$', re.MULTILINE)
PACKAGES = ("torch", "transformers", "triton")


def seen() -> dict[str, tuple[str, str]]:
    """The first and the last minor version of each package that CI has passed with."""
    _, _, table = PYPROJECT.read_text().partition("[tool.secateurs.seen]")
    rows = SEEN_ROW.findall(table.partition("\n[")[0])
    return {package: (first, last) for package, first, last in rows}


def requirement(package: str) -> Requirement:
    (text,) = re.findall(rf'^ *"({package}[<>=][^"]*)"', PYPROJECT.read_text(), re.MULTILINE)
    return Requirement(text)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_bounds_are_what_was_seen(package):
    first, last = seen()[package]
    major, minor = Version(last).release
    bounds = {str(bound) for bound in requirement(package).specifier}
    assert bounds == {f">={first}", f"<{major}.{minor + 1}"}


@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_installed_lies_within_the_bounds(package):
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        assert package == "triton"
        pytest.skip("Triton is not installed")
    assert requirement(package).specifier.contains(version, prereleases=True)


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_ci_still_sees_both_ends(package):
    """Where a package has no newer version yet, a bound that is higher is of what nobody tried."""
    end = os.environ.get("SECATEURS_SEEN")
    if end is None:
        pytest.skip("this environment is meant to have neither end")
    minor = ".".join(map(str, Version(metadata.version(package)).release[:2]))
    assert minor == seen()[package][{"oldest": 0, "newest": 1}[end]]
