"""What Windows lacks, taken away: every module is imported and every command runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer
from support.paths import TESTS

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
SOON = 120.0  # seconds; they only end a test that would hang

pytestmark = pytest.mark.fault(49)


def start(code: str, *arguments: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a program in which Windows is played."""
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", f"from support.windows import *; {code}", *arguments],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(code: str, *arguments: str, folder: Path) -> tuple[int, bytes, bytes]:
    """Run it to its end."""
    with start(code, *arguments, folder=folder) as process:
        out, err = process.communicate(timeout=SOON)
    return process.returncode, out, err


IMPORT_ALL = """play_windows()
import importlib, pkgutil, aioivschat
for found in pkgutil.walk_packages(aioivschat.__path__, 'aioivschat.'):
    if not found.name.endswith(('__main__', '.hook-aioivschat')):  # PyInstaller's
        print(importlib.import_module(found.name).__name__)
"""


def test_every_module_is_imported(tmp_path: Path) -> None:
    """None needs what Windows does not have, before anything is called."""
    status, out, err = run(IMPORT_ALL, folder=tmp_path)
    assert (0, b"") == (status, err), err.decode()
    assert len(out.split()) > 90


@pytest.mark.parametrize(
    "arguments",
    [
        ["issue", "--room", ROOM, "--user", "viewer"],
        ["onboard", "attendees.csv", "--room", ROOM],
        ["onboard", "attendees.csv", "--room", ROOM, "--output", "tokens.jsonl"],
        ["onboard", "attendees.csv", "--room", ROOM, "--output", "tokens.jsonl", "--stream"],
        ["onboard", "attendees.csv", "--room", ROOM, "--output", "tokens.jsonl", "--resume", "c"],
        ["onboard", "attendees.csv", "--room", ROOM, "--resume", "c"],
        ["rehearse", "--attendees", "10"],
        ["plan", "--attendees", "10"],
    ],
    ids=" ".join,
)
def test_every_command_runs(tmp_path: Path, arguments: Sequence[str]) -> None:
    """With the status and the output that it has elsewhere."""
    (tmp_path / "attendees.csv").write_text("user\nviewer\n")
    status, out, err = run("run()", *arguments, folder=tmp_path)
    assert (0, False) == (status, b"Traceback" in err), err
    if "--output" in arguments:
        out = (tmp_path / "tokens.jsonl").read_bytes()
    if arguments[0] in ("issue", "onboard"):
        assert ["viewer"] == [json.loads(line)["user"] for line in out.splitlines()]
    assert [] == [*tmp_path.glob("*.lock"), *tmp_path.glob("*.part")]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_a_signal_ends_a_command(tmp_path: Path, number: signal.Signals, status: int) -> None:
    """Without handlers of the event loop; nothing is left behind."""
    arguments = ["onboard", "-", "--room", ROOM, "--output", "tokens.jsonl"]
    with start("run()", *arguments, folder=tmp_path) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"aioivschat: these tokens")
        process.send_signal(number)
        assert status == process.wait(SOON)
        assert b"" == process.stderr.read()
    assert [] == list(tmp_path.iterdir())


def test_an_interrupt_ends_a_rehearsal_with_its_report(tmp_path: Path) -> None:
    """As it does elsewhere."""
    with ThreadedEmulatorServer(Emulator(quota=QuotaShape("unlimited"))) as server:
        endpoint = ["--endpoint-url", server.url, "--room", ROOM]
        arguments = ["rehearse", "--attendees", "2000", "--rate", "20", "--json", *endpoint]
        with start("run()", *arguments, folder=tmp_path) as process:
            assert process.stdout is not None
            while server.emulator.counts().minted < 10 and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            report = process.stdout.read()
            assert 130 == process.wait(SOON)
    assert json.loads(report)


def test_the_demo_is_served(tmp_path: Path) -> None:
    """Until it is interrupted."""
    with start("run()", "demo", "--no-open", folder=tmp_path) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["url"]
        process.send_signal(signal.SIGINT)
        assert 130 == process.wait(SOON)
