"""What SECURITY.md says is held by tests is held by tests that there are."""

from __future__ import annotations

import ast
import re

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.once

POLICY = (ROOT / "SECURITY.md").read_text()
THREATS = POLICY.partition("|---|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@pytest.mark.parametrize(("file", "name"), sorted(set(_TEST.findall(POLICY))))
def test_a_test_that_is_named_exists(file: str, name: str) -> None:
    """Under that name, in that file."""
    module = ast.parse((ROOT / file).read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in module.body if isinstance(node, kinds)}


@pytest.mark.parametrize("threat", THREATS, ids=lambda row: row.strip("| ").partition(" |")[0])
def test_every_threat_is_held_by_a_test(threat: str) -> None:
    """Who, what, must never; and nothing else is in the last column."""
    _, *cells, _ = threat.split("|")
    assert 4 == len(cells)
    assert all(cell.strip() for cell in cells)
    assert _TEST.findall(cells[-1])
    assert "" == _TEST.sub("", cells[-1]).replace(",", "").strip()


def test_all_who_are_to_be_feared_are_in_the_table() -> None:
    """Eleven of them."""
    assert 11 == len(THREATS)
