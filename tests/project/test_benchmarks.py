"""The benchmarks run, and their page shows what they wrote."""

from __future__ import annotations

import functools
import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from support.paths import ROOT

pytestmark = pytest.mark.once

BENCHMARKS = ROOT / "benchmarks"

RenderPage = Callable[..., None]


def _run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr
    return result.stdout


@functools.cache
def _measure(script: str) -> tuple[str, str]:
    """Return the table and the JSON of a quick run."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        return _run(script, "--quick", "--json", str(file)), file.read_text()


@pytest.fixture
def render_page(monkeypatch: pytest.MonkeyPatch) -> RenderPage:
    """What runs the script of the page, in this process: a new one would import matplotlib."""
    monkeypatch.syspath_prepend(BENCHMARKS)

    def render(*arguments: Path | str) -> None:
        monkeypatch.setattr(sys, "argv", ["page.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(BENCHMARKS / "page.py"), run_name="__main__")
        assert 0 == end.value.code

    return render


@pytest.mark.parametrize(
    "script", ["hits", "cold", "coalesce", "rush", "onboard", "memory", "startup"]
)
def test_a_quick_run_fills_the_page(script: str, tmp_path: Path, render_page: RenderPage) -> None:
    """With what is installed; every line of the table is on the page."""
    table, figures = _measure(script)
    (tmp_path / f"{script}.json").write_text(figures)
    render_page(tmp_path)
    page = (tmp_path / "README.md").read_text()
    for row in json.loads(figures)["rows"]:
        labels = list(row["labels"].values())
        assert any(line.startswith(labels[0]) for line in table.splitlines())
        assert f"| {' | '.join(labels)} | " in page


def test_the_page_puts_its_main_table_into_a_text(tmp_path: Path, render_page: RenderPage) -> None:
    """Between the marks, whatever was there before; a second time changes nothing."""
    readme = tmp_path / "text"
    ours = (BENCHMARKS.parent / "README.md").read_text()
    before, mark, rest = ours.partition("<!-- benchmarks: ")
    end = "<!-- /benchmarks -->"
    after = rest.partition(end)[2]
    assert mark
    readme.write_text(ours)
    (tmp_path / "coalesce.json").write_text(_measure("coalesce")[1])
    _run("page", str(tmp_path), "--readme", str(readme))
    text = readme.read_text()
    assert text.startswith(before + mark)
    assert text.endswith(end + after)
    assert "| joining one of " in text
    page = (tmp_path / "README.md").read_text()
    render_page(tmp_path, "--readme", readme)
    assert (page, text) == ((tmp_path / "README.md").read_text(), readme.read_text())
