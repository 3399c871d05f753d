"""``aioivschat plan`` as a process: table, chart, JSON, picture, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aioivschat.cli.terminal_report import plan_report
from aioivschat.planning import LiveEvent, plan
from support import commands
from support.commands import SOON, Command


def run(
    *arguments: str,
    place: Path,
    without: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, in a place of its own, as if some libraries were missing."""
    options: dict[str, Any] = {
        "cwd": place,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
        "env": {**os.environ, "PYTHONIOENCODING": "utf-8", **(environment or {})},
    }
    if not without:
        return commands.run(["plan", *arguments], **options)
    hide = "".join(f"sys.modules[{name!r}] = None; " for name in without)
    script = f"import sys; {hide}import aioivschat.cli as cli; sys.exit(cli.main())"
    command = (sys.executable, "-c", script, "plan", *arguments)
    return subprocess.run(command, check=False, timeout=SOON, **options)


def on_a_terminal(*arguments: str, environment: dict[str, str]) -> str:
    """Run the command with a terminal as standard output; return what it shows."""
    ours, theirs = pty.openpty()
    process = Command(
        ["plan", *arguments],
        stdout=theirs,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # how Linux says that the other side is closed
    os.close(ours)
    assert 0 == process.wait(SOON)
    return shown.decode()


def test_a_plan_is_a_table_and_a_chart(tmp_path: Path) -> None:
    """A plan shows the waits, what would help, and three quantities over time."""
    done = run("--attendees", "1000", "--arrivals", "uniform:2", "--prewarm", "1", place=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    for told in (
        "1,000 attendees evenly over 2 s; 1 room in 1 region, 200 tokens a second, prewarmed for",
        "last viewer in",
        "earliest feasible",
        "95 % wait at most",
        "wait over 10 s",
        "tokens prewarmed",
        "then: renewals",
        "with one more region",
        "with prewarming 50 s ahead",
        "arrivals a second",
        "tokens a second",
        "viewers waiting",
        "s after the doors open",
        "█",
    ):
        assert told in done.stdout
    assert "\x1b" not in done.stdout
    assert 80 >= max(map(len, done.stdout.splitlines()[20:]))


def test_json_is_one_object(tmp_path: Path) -> None:
    """``--json`` prints the event with all its options, and the plan."""
    done = run(
        *("--attendees", "500", "--arrivals", "ramp:2", "--rate", "100", "--burst", "20"),
        *("--regions", "2", "--rooms", "3", "--session-minutes", "30", "--reconnects", "2"),
        *("--renew", "token", "--patience", "1", "--latency", "0.05", "--prewarm", "1", "--json"),
        place=tmp_path,
    )
    (line,) = done.stdout.splitlines()
    shape = json.loads(line)
    assert {
        "attendees": 500,
        "arrivals": {"shape": "ramp", "seconds": 2.0, "counts": []},
        "prewarm": 1.0,
        "rooms": 3,
        "regions": 2,
        "session_minutes": 30,
        "reconnects": 2.0,
        "renewal": "token",
        "patience": 1.0,
        "latency": 0.05,
        "rate": 100.0,
        "burst": 20,
        "learnt": None,
    } == shape["event"]
    assert 500 == shape["plan"]["admitted"]


def test_what_a_former_run_has_learnt_is_begun_with(tmp_path: Path) -> None:
    """``--learnt`` lets a crowd in at once that had to wait while nothing was known."""
    finished = {}
    for options in ((), ("--learnt", "200")):
        done = run("--attendees", "150", *options, "--json", place=tmp_path)
        finished[options] = json.loads(done.stdout)["plan"]["finished"]
    assert finished["--learnt", "200"] < 0.05 < finished[()]


def test_a_known_bucket_has_nothing_to_learn(tmp_path: Path) -> None:
    """``--burst`` and ``--learnt`` exclude each other."""
    done = run("--attendees", "1", "--burst", "20", "--learnt", "20", place=tmp_path)
    assert 2 == done.returncode
    assert "--learnt: not allowed with argument --burst" in done.stderr


def test_arrivals_come_from_a_file(tmp_path: Path) -> None:
    """Arrivals of a file are scaled to ``--attendees``; a spreadsheet's BOM does no harm."""
    (tmp_path / "last.csv").write_text("\ufeffsecond,arrivals\n0,30\n3,70\n", encoding="utf-8")
    for arguments, attendees in ((), 100), (("--attendees", "50"), 50):
        done = run("--arrivals", "last.csv", "--json", *arguments, place=tmp_path)
        timeline = json.loads(done.stdout)["plan"]["timeline"]
        assert attendees == sum(timeline["arrived"])
        assert (0.3 * attendees, 0.7 * attendees) == (
            timeline["arrived"][0],
            timeline["arrived"][3],
        )


@pytest.mark.parametrize(
    ("kind", "beginning"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("SVG", b"<?xml")]
)
def test_a_picture_is_drawn(tmp_path: Path, kind: str, beginning: bytes) -> None:
    """``--plot`` writes SVG or PNG, in place of an older file."""
    picture = tmp_path / f"plan.{kind}"
    picture.write_text("older")
    done = run("--attendees", "300", "--prewarm", "1", "--plot", picture.name, place=tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert picture.read_bytes().startswith(beginning)


def test_a_picture_shows_the_four_curves(tmp_path: Path) -> None:
    """A picture names arrived, admitted, waiting, minted and the quota."""
    run("--attendees", "300", "--plot", "plan.svg", place=tmp_path)
    text = (tmp_path / "plan.svg").read_text()
    for name in ("arrived", "admitted", "waiting", "tokens minted", "quota, 200 a second"):
        assert f"<!-- {name} -->" in text


def test_a_picture_needs_matplotlib(tmp_path: Path) -> None:
    """``--plot`` without matplotlib is refused before planning, with what to install."""
    done = run("--attendees", "10", "--plot", "a.svg", place=tmp_path, without=["matplotlib"])
    assert (2, "") == (done.returncode, done.stdout)
    assert "pip install 'aioivschat[plot]'" in done.stderr
    assert 0 == run("--attendees", "10", place=tmp_path, without=["matplotlib"]).returncode


def test_a_terminal_gets_colours_and_its_own_width() -> None:
    """A terminal gets colours and charts of its width; ``NO_COLOR`` turns colours off."""
    width = {"COLUMNS": "60", "LINES": "40", "NO_COLOR": ""}
    os.environ.pop("NO_COLOR", None)
    coloured = {key: value for key, value in width.items() if key != "NO_COLOR"}
    shown = on_a_terminal("--attendees", "400", environment=coloured)
    assert "\x1b[33m" in shown
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown).splitlines()
    axis = next(line for line in lines if "└" in line)
    assert 59 == len(axis)
    assert "\x1b" not in on_a_terminal("--attendees", "400", environment=width)


def test_it_does_without_rich(tmp_path: Path) -> None:
    """Table and chart are the same without rich."""
    arguments = ("--attendees", "400")
    assert (
        run(*arguments, place=tmp_path).stdout
        == run(*arguments, place=tmp_path, without=["rich"]).stdout
    )


def test_a_terminal_without_unicode_gets_a_chart_too(tmp_path: Path) -> None:
    """An ASCII terminal gets a chart of ASCII characters."""
    done = run("--attendees", "400", place=tmp_path, environment={"PYTHONIOENCODING": "ascii"})
    assert done.stdout.isascii()
    assert "####" in done.stdout


def test_what_cannot_last_is_said(tmp_path: Path) -> None:
    """A plan warns of renewals by token, and of more renewals than the quota carries."""
    (tmp_path / "crowd.csv").write_text("50\n")
    options = ("--arrivals", "crowd.csv", "--renew", "token", "--rate", "1")
    done = run(*options, place=tmp_path)
    assert "! Give clients the session's end" in done.stdout
    assert "! The quota carries 29 viewers for good, not 50." in done.stdout
    assert "connections" not in done.stdout


def test_too_many_connections_are_said() -> None:
    """A plan warns of more viewers than have a connection; a small one is shown as a large one."""
    made = plan(LiveEvent(10))
    for attendees, told in (50_000, False), (50_001, True):
        report = plan_report(replace(made, event=replace(made.event, attendees=attendees)))
        assert told == ("! More viewers than the 50,000 connections" in report)


def test_an_interrupt_ends_a_plan(tmp_path: Path) -> None:
    """An interrupt ends a plan without output, with status 130."""
    os.mkfifo(tmp_path / "slow.csv")
    with Command(
        ["plan", "--arrivals", "slow.csv"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            # From here on it has begun, and so many take longer than to send a signal.
            with (tmp_path / "slow.csv").open("w") as arrivals:
                arrivals.write("100\n" * 3_000)
            process.send_signal(signal.SIGINT)
            assert (b"", b"") == process.communicate(timeout=SOON)
        finally:
            process.kill()
    assert 130 == process.returncode


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--attendees is needed"),
        (("--attendees", "0"), "--attendees"),
        (("--attendees", "9", "--arrivals", "slowly"), "at-once, uniform:SECONDS or ramp:SECONDS"),
        (("--attendees", "9", "--prewarm", "56"), "prewarm: must be 0 to 55 s"),
        (("--attendees", "9", "--regions", "8"), "regions: must be 1 to 7"),
        (("--attendees", "9", "--regions", "2", "--rooms", "1"), "rooms: must be one for each"),
        (("--attendees", "9", "--renew", "never"), "--renew"),
        (("--attendees", "9", "--plot", "plan.pdf"), "must end in .svg or .png"),
        (("--arrivals", "bad.csv"), "arrivals, line 2: must be"),
        (("--arrivals", "binary.csv"), "arrivals, line 2: must be"),
    ],
)
def test_wrong_use_is_status_2(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    """Wrong use of ``plan`` is status 2, with the reason and no traceback."""
    (tmp_path / "bad.csv").write_text("0,5\nmany,7\n")
    (tmp_path / "binary.csv").write_bytes(b"0,5\n\xff\x00\xfe,7\n")
    done = run(*arguments, place=tmp_path)
    assert (2, "") == (done.returncode, done.stdout)
    assert told in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("--arrivals", "none.csv"), ("--plot", "none/plan.svg")])
def test_a_file_that_cannot_be_used_is_a_failure(
    tmp_path: Path, arguments: tuple[str, str]
) -> None:
    """A file that cannot be read or written is named, with status 1."""
    done = run("--attendees", "9", *arguments, place=tmp_path)
    assert (1, "") == (done.returncode, done.stdout)
    assert f"aioivschat: {arguments[1]}: No such file or directory" in done.stderr
