"""The guide holds: every command in it runs and says what is shown."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.planning import LiveEvent, plan, plan_as_json
from support.paths import ROOT

pytestmark = pytest.mark.once

GUIDE = (ROOT / "docs" / "guide.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)


COMMANDS = _blocks("console")


def test_every_block_is_run_by_some_test() -> None:
    """The guide has one program, and one command in each block of commands."""
    assert len(re.findall(r"^```\w", GUIDE, flags=re.MULTILINE)) == len(COMMANDS) + 1
    assert all(block.startswith("$ ") and block.count("$ ") == 1 for block in COMMANDS)


@pytest.mark.usefixtures("ivschat_env")
@pytest.mark.parametrize("block", COMMANDS, ids=range(1, len(COMMANDS) + 1))
def test_a_command_of_the_guide_says_what_is_shown(tmp_path: Path, block: str) -> None:
    """A command's output has the lines that the guide shows, in their order."""
    command, *shown = block.removeprefix("$ ").splitlines()
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        encoding="utf-8",
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONIOENCODING": "utf-8",
        },
    )
    assert 0 == done.returncode, done.stderr
    rest = done.stdout
    for line in shown:
        found, _, rest = rest.partition(line)
        assert rest, f"{line!r} is not in what follows:\n{found}"


@pytest.mark.usefixtures("ivschat_env")
def test_the_program_of_the_guide_runs(ivschat_emulator: ThreadedEmulatorServer) -> None:
    """The guide's program runs without a warning and prewarms its viewers."""
    (program,) = _blocks("python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert ivschat_emulator.emulator.counts().minted >= 100


def test_the_guide_names_every_member_of_the_json() -> None:
    """The guide names every member of a plan's JSON."""
    shape = json.loads(json.dumps(plan_as_json(plan(LiveEvent(10)))))

    def names(value: object) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(names, value.values()))
        return set().union(*map(names, value)) if isinstance(value, list) else set()

    described = set(re.findall(r"`(\w+)`", GUIDE.partition("## The shape of")[2]))
    assert set() == names(shape) - described
