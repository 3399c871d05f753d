"""Every example in the docs runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aioivschat.emulator import ThreadedEmulatorServer
from support.endpoint_servers import running, running_asgi
from support.paths import ROOT

pytestmark = pytest.mark.once

README = (ROOT / "README.md").read_text()
ONBOARD = (ROOT / "docs" / "onboard.md").read_text()


def _blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


PROGRAMS = [block for block in _blocks("python") if "asyncio.run(" in block]
APPS = [block for block in _blocks("python") if ".setup(app" in block]
TESTS = [block for block in _blocks("python") if "def test_" in block]
COMMANDS = [line[2:] for block in _blocks("console") for line in block.splitlines()]
MAIN_JOB, TEST_RUN = (block.strip() for block in _blocks("bash"))


def test_every_block_is_run_by_some_test() -> None:
    """No example of the README escapes the tests of this file."""
    assert len(_blocks("python")) == len(PROGRAMS) + len(TESTS) + len(APPS)
    assert all(line.startswith("$ ") for block in _blocks("console") for line in block.splitlines())


@pytest.mark.usefixtures("ivschat_env")
@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_a_program_of_the_readme_runs(
    ivschat_emulator: ThreadedEmulatorServer, program: str
) -> None:
    """A program of the README runs against an emulator, with warnings as errors."""
    if "NO_ROOM" in program:
        ivschat_emulator.emulator.configure(any_room=False)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )
    assert (0, "") == (result.returncode, result.stderr)
    if "NO_ROOM" in program:
        assert "ResourceNotFoundException 404" in result.stdout
        assert "capabilities: must be" in result.stdout


@pytest.mark.usefixtures("ivschat_env")
@pytest.mark.parametrize("source", APPS, ids=["aiohttp", "fastapi"])
async def test_an_application_of_the_readme_serves_tokens(source: str) -> None:
    """An application of the README gives only a user a token, and serves the module."""
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(source, "README.md", "exec"), names)
    app = names["app"]
    running_app = running(app) if isinstance(app, web.Application) else running_asgi(app)
    async with running_app as url, aiohttp.ClientSession() as browser:
        for headers, status in (({"X-User": "alice"}, 200), ({}, 403)):
            async with browser.post(f"{url}/chat/token", json={}, headers=headers) as answer:
                assert status == answer.status
                assert ("token" in await answer.json(content_type=None)) == (status == 200)
        (module,) = {line.split('"')[1] for line in "".join(_blocks("js")).splitlines()[:1]}
        async with browser.get(url + module) as answer:
            assert "export function createTokenProvider" in await answer.text()


@pytest.mark.parametrize("block", TESTS, ids=["a test", "a session"])
def test_the_test_of_the_readme_passes(pytester: pytest.Pytester, block: str) -> None:
    """A test of the README passes with the plugin's fixtures and nothing else."""
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(block)
    result = pytester.runpytest_subprocess("-q")
    result.assert_outcomes(passed=1)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_readme_runs(command: str) -> None:
    """A command of the README prints a token of the embedded emulator."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert 0 == result.returncode, result.stderr
    assert '"token": "' in result.stdout


def test_the_commands_of_onboarding_run(tmp_path: Path) -> None:
    """The commands of docs/onboard.md run one after the other in an empty folder."""
    blocks = _blocks("console", ONBOARD)
    assert len(blocks) == ONBOARD.count("```") / 2
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = "\n".join(["set -e -o pipefail", *(line[2:] for line in lines)])
    result = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
    )
    assert 0 == result.returncode, result.stderr


def test_ci_runs_the_very_command_of_the_readme() -> None:
    """Continuous integration runs the README's test command."""
    assert TEST_RUN in map(str.strip, (ROOT / ".ci" / "run").read_text().splitlines())


def test_the_main_job_of_the_readme_works_on_the_example(tmp_path: Path) -> None:
    """The README's onboarding command works on the first attendees of the example."""
    command = MAIN_JOB.split("&&")[-1].strip()
    assert ".venv/bin/aioivschat onboard examples/attendees.csv" in command
    attendees = (ROOT / "examples" / "attendees.csv").read_text().splitlines()[:41]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "attendees.csv").write_text("\n".join(attendees))
    here = command.replace(".venv/bin/aioivschat", f"{sys.executable} -m aioivschat")
    result = subprocess.run(here.split(), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert 0 == result.returncode, result.stderr
    assert 40 == len((tmp_path / "tokens.jsonl").read_text().splitlines())
    assert "40 tokens, 0 failed" in result.stderr
