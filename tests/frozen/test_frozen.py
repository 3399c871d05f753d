"""The library frozen by PyInstaller works, with what it loads by name and the files it reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

import aioivschat
from support.commands import SOON
from support.paths import TESTS

pytestmark = [pytest.mark.frozen, pytest.mark.fault(44)]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The frozen program; what is installed is frozen, so nothing of this repository is."""
    folder = tmp_path_factory.mktemp("frozen")
    command = [sys.executable, "-m", "PyInstaller", "--onedir", "--log-level=ERROR"]
    places = [f"--{name}path={folder / name}" for name in ("spec", "work", "dist")]
    # Of other extras, which are large and not run here.
    left_out = [f"--exclude-module={name}" for name in ("matplotlib", "moto", "numpy")]
    source = TESTS / "frozen" / "program.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [*command, *places, *left_out, str(source)],
        cwd=folder,
        env=environment,
        check=True,
        timeout=900,
    )
    return folder / "dist" / "program" / "program"


def _run(program: Path, *arguments: str, stdin: str = "") -> str:
    ran = subprocess.run(
        [program, *arguments],
        input=stdin,
        env={"PATH": os.defpath, "HOME": str(program.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=SOON,
    )
    assert 0 == ran.returncode, ran.stderr
    return ran.stdout


def test_a_frozen_program_issues_and_serves_tokens(program: Path) -> None:
    """Every public name is there, requests are prepared, and each file is where it is read."""
    found = json.loads(_run(program))
    assert aioivschat.__all__ == found["public"]
    assert 3 == found["told"].count("Minted") == found["requests"]
    assert "NotPrepared" not in found["told"]
    assert "export function createTokenProvider" in found["module"]
    package = Path(str(resources.files(aioivschat)))
    files = [path for path in package.rglob("*") if path.parent.name == "static"]
    assert {path.relative_to(package).as_posix() for path in files} <= {*found["files"]}


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["onboard", "-", "--room", "arn:aws:ivschat:us-east-1:1:room/x"], '"token": "'),
        (["plan", "--attendees", "20", "--json"], '"attendees": 20'),
        (["demo", "--help"], "usage"),
        (["fleet", "check", "--help"], "usage"),
    ],
    ids=["onboard", "plan", "demo", "fleet"],
)
def test_a_frozen_command_runs(program: Path, arguments: list[str], printed: str) -> None:
    """Its subcommands are loaded by name."""
    assert printed in _run(program, *arguments, stdin="user\nalice\n")
