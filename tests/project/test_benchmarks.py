"""The benchmarks run, and their page shows what they wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.once

BENCHMARKS = ROOT / "benchmarks"


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "script", ["hits", "cold", "coalesce", "rush", "onboard", "memory", "startup"]
)
def test_a_quick_run_fills_the_page(script: str, tmp_path: Path) -> None:
    """With what is installed; every line of the table is on the page."""
    file = tmp_path / f"{script}.json"
    table = _run(script, "--quick", "--json", str(file))
    _run("page", str(tmp_path))
    page = (tmp_path / "README.md").read_text()
    for row in json.loads(file.read_text())["rows"]:
        labels = list(row["labels"].values())
        assert any(line.startswith(labels[0]) for line in table.splitlines())
        assert f"| {' | '.join(labels)} | " in page


def test_the_page_puts_its_main_table_into_a_text(tmp_path: Path) -> None:
    """Between the marks, whatever was there before; a second time changes nothing."""
    readme = tmp_path / "text"
    ours = (BENCHMARKS.parent / "README.md").read_text()
    before, mark, rest = ours.partition("<!-- benchmarks: ")
    end = "<!-- /benchmarks -->"
    after = rest.partition(end)[2]
    assert mark
    readme.write_text(ours)
    _run("coalesce", "--quick", "--json", str(tmp_path / "coalesce.json"))
    _run("page", str(tmp_path), "--readme", str(readme))
    text = readme.read_text()
    assert text.startswith(before + mark)
    assert text.endswith(end + after)
    assert "| joining one of " in text
    page = (tmp_path / "README.md").read_text()
    _run("page", str(tmp_path), "--readme", str(readme))
    assert (page, text) == ((tmp_path / "README.md").read_text(), readme.read_text())
