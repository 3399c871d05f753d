"""Every dependency has the lowest version that is promised, and a version that ends the promise."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement

from support.paths import ROOT

pytestmark = pytest.mark.once

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
]


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_a_dependency_has_both_bounds(text: str) -> None:
    """The lowest one is what ``nox -s compat`` tests with; a new major version is nobody's yet."""
    bounds = sorted(specifier.operator for specifier in Requirement(text).specifier)
    assert ["<", ">="] == bounds
