"""``aioivschat rehearse``: a crowd let in for real, with its plan beside it."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aioivschat import AccessDenied, AsyncTokenService, Quota
from aioivschat.emulator import Emulator, Fault, FaultKind, QuotaShape, ThreadedEmulatorServer
from aioivschat.planning import Arrivals, LiveEvent, Renewal
from aioivschat.planning._crowd import CrowdRun
from support import commands
from support.commands import SOON, Command
from support.services import OpenService, until

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Main"
OTHER = "arn:aws:ivschat:eu-west-1:123456789012:room/Other"
MANY = ("--rate", "2000")


@pytest.fixture
def emulator() -> Iterator[ThreadedEmulatorServer]:
    """Run an emulator that refuses nobody."""
    with ThreadedEmulatorServer(Emulator(quota=QuotaShape("unlimited"))) as server:
        yield server


@pytest.fixture
def environment(tmp_path: Path, emulator: ThreadedEmulatorServer) -> dict[str, str]:
    """Return an environment in which AWS is that emulator."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **kept,
        "HOME": str(tmp_path),
        "TERM": "xterm",
        "COLUMNS": "150",
        "PYTHONIOENCODING": "utf-8",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL_IVSCHAT": emulator.url,
    }


def run(
    *arguments: str, environment: dict[str, str], place: Path | None = None, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return commands.run(
        ["rehearse", *arguments],
        env=environment,
        cwd=place,
        encoding="utf-8",
        **{**streams, **options},
    )


def with_terminal(
    *arguments: str, environment: dict[str, str], answer: str = ""
) -> tuple[int, str, str]:
    """Run with a terminal for input and standard error; return status, output and what it shows."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = run(*arguments, environment=environment, stdin=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # how Linux says that the other side is closed
    os.close(ours)
    return done.returncode, done.stdout, shown.decode()


def test_the_plan_stands_beside_what_was_measured(
    environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """A rehearsal runs on an emulator of its own, and shows plan and measurement side by side."""
    done = run("--attendees", "300", *MANY, environment=environment)
    assert 0 == done.returncode, done.stderr
    table = {
        line[:18].strip(): line[18:].split() for line in done.stdout.splitlines() if line[:1] != " "
    }
    assert ["300", "300"] == table["viewers in"]
    assert ["0", "0"] == table["throttled requests"]
    assert ["0", "0"] == table["failed"]
    assert re.search(r"half wait at most +[\d.]+ s +[\d.]+ s +[+-][\d.]+ s", done.stdout)
    assert "viewers waiting: bars measured, dots planned" in done.stdout
    assert "do not connect to AWS" in done.stderr
    assert 0 == emulator.emulator.counts().requests


def test_json_holds_both(environment: dict[str, str], tmp_path: Path) -> None:
    """``--json`` holds plan and measurement in one shape, and ``--plot`` draws both."""
    done = run(
        *("--attendees", "200", "--arrivals", "uniform:1", "--prewarm", "1", "--json"),
        *("--plot", "r.svg", *MANY),
        environment=environment,
        place=tmp_path,
    )
    shape = json.loads(done.stdout)
    assert ["version", "event", "plan", "measured", "interrupted"] == list(shape)
    assert (1, False, 200) == (shape["version"], shape["interrupted"], shape["event"]["attendees"])
    assert list(shape["plan"]) == list(shape["measured"])
    for outcome in (shape["plan"], shape["measured"]):
        assert 200 == outcome["admitted"] == sum(outcome["timeline"]["admitted"])
        assert outcome["prewarmed"] == outcome["timeline"]["tokens"][0]
        assert -1 == outcome["timeline"]["start"]
    # A busy machine mints fewer before the doors: all of them only in virtual time.
    assert 200 == shape["plan"]["prewarmed"] >= shape["measured"]["prewarmed"]
    assert "<!-- plan: admitted -->" in (tmp_path / "r.svg").read_text()


def test_an_endpoint_serves_the_crowd(
    environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """Each viewer costs a token, each region one more; throttles are counted and cost nobody."""
    emulator.emulator.fail_next(Fault(FaultKind.SLOW), Fault(FaultKind.SLOW))  # the first two
    emulator.emulator.fail_next(Fault(FaultKind.THROTTLE_JSON, times=3))
    done = run(
        *("--attendees", "60", "--endpoint-url", emulator.url, "--room", ROOM, "--room", OTHER),
        *("--session-minutes", "5", "--json", *MANY),
        environment=environment,
    )
    assert 0 == done.returncode, done.stderr
    shape = json.loads(done.stdout)
    assert [2, 2] == [shape["event"]["rooms"], shape["event"]["regions"]]
    assert [60, 3] == [shape["measured"]["admitted"], shape["measured"]["throttled"]]
    assert 62 == emulator.emulator.counts().minted


@pytest.mark.parametrize("target", [("--aws",), ("--endpoint-url", "https://127.0.0.1:1")])
def test_real_quota_is_not_spent_unasked(
    environment: dict[str, str], emulator: ThreadedEmulatorServer, target: tuple[str, ...]
) -> None:
    """Where nobody can be asked, spending real quota needs ``--yes``."""
    done = run("--attendees", "50", "--room", ROOM, *target, environment=environment)
    assert (2, "") == (done.returncode, done.stdout)
    assert "say --yes" in done.stderr
    assert 0 == emulator.emulator.counts().requests


@pytest.mark.parametrize(
    ("answer", "status", "requests"), [("y\n", 0, 51), ("n\n", 130, 0), ("\n", 130, 0)]
)
def test_somebody_at_a_terminal_is_asked(
    environment: dict[str, str],
    emulator: ThreadedEmulatorServer,
    answer: str,
    status: int,
    requests: int,
) -> None:
    """At a terminal the cost is named, and any answer but yes means no."""
    arguments = ("--attendees", "50", "--room", ROOM, "--aws")
    found, _, shown = with_terminal(*arguments, environment=environment, answer=answer)
    assert "asks for 50 tokens" in shown
    assert (status, requests) == (found, emulator.emulator.counts().requests)


def test_with_yes_nobody_is_asked(
    environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """With ``--yes`` nobody is asked; ``--aws`` uses the endpoint that boto3 would use."""
    arguments = ("--attendees", "50", "--room", ROOM, "--aws", "--yes", *MANY)
    assert 0 == run(*arguments, environment=environment).returncode
    assert 51 == emulator.emulator.counts().requests


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--attendees is needed"),
        (("--attendees", "5", "--aws", "--yes"), "--aws needs the event's rooms"),
        (("--attendees", "5", "--room", "Lobby"), "roomIdentifier: must be a room ARN"),
        (("--attendees", "5", "--profile", "me"), "--profile needs"),
        (("--attendees", "5", "--plot", "a.jpg"), "must end in .svg or .png"),
    ],
)
def test_wrong_use_is_status_2(
    environment: dict[str, str], arguments: tuple[str, ...], told: str
) -> None:
    """Wrong use of ``rehearse`` is refused before anything is asked for."""
    done = run(*arguments, environment=environment)
    assert (2, "") == (done.returncode, done.stdout)
    assert told in done.stderr


def test_a_terminal_shows_how_it_goes(environment: dict[str, str]) -> None:
    """A terminal shows who is in, who waits, the pace, throttles and the p95 so far."""
    status, printed, shown = with_terminal(
        "--attendees", "150", "--rate", "50", "--prewarm", "1", environment=environment
    )
    assert (0, True) == (status, "viewers in" in printed)
    state = r"\d+ in, \d+ wait \(p95 \d+\.\d s\), \d+/s of 50, 0 throttled"
    assert re.search(rf"doors in 1 s .* {state}", shown)
    assert re.search(rf"\b1 s .* {state}", shown)


def test_quiet_shows_no_progress(environment: dict[str, str]) -> None:
    """With ``--quiet`` a terminal shows no live view of a rehearsal."""
    _, _, shown = with_terminal("--attendees", "20", "--quiet", *MANY, environment=environment)
    assert 1 == len(shown.splitlines())


def test_it_does_without_rich(environment: dict[str, str]) -> None:
    """Without rich a rehearsal works, and says that the live view is missing."""
    script = (
        "import sys; sys.modules['rich'] = None; import aioivschat.cli as c; sys.exit(c.main())"
    )
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", script, "rehearse", "--attendees", "20", *MANY],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
        timeout=SOON,
        check=False,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert (0, True) == (done.returncode, b"viewers in" in done.stdout)
    assert "a live view needs aioivschat[cli]" in shown


@pytest.mark.parametrize("shape", [(), ("--json",)])
def test_an_interrupt_shows_what_was_measured(
    environment: dict[str, str], emulator: ThreadedEmulatorServer, shape: tuple[str, ...]
) -> None:
    """An interrupted rehearsal is shown with the plan up to the same second."""
    arguments = ("--attendees", "2000", "--endpoint-url", emulator.url, "--room", ROOM, *shape)
    with Command(
        ["rehearse", *arguments], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            deadline = time.monotonic() + SOON
            while emulator.emulator.counts().minted < 100 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            printed, _ = process.communicate(timeout=SOON)
        finally:
            process.kill()
    assert 130 == process.returncode
    minted = emulator.emulator.counts().minted
    if shape:
        found = json.loads(printed)
        assert found["interrupted"]
        assert 0 < found["measured"]["admitted"] < minted < 2_000
        assert 2_000 == found["measured"]["arrived"] == found["plan"]["arrived"]
        assert 0 < found["plan"]["admitted"] < 2_000
    else:
        assert "Interrupted in second" in printed
        assert re.search(r"viewers in +[\d,]+ +[\d,]+", printed)


def test_a_signal_to_terminate_ends_it_at_once(
    environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """SIGTERM ends a rehearsal with the signal's status and prints nothing."""
    arguments = ("--attendees", "2000", "--endpoint-url", emulator.url, "--room", ROOM)
    with Command(
        ["rehearse", *arguments], env=environment, stdout=subprocess.PIPE, encoding="utf-8"
    ) as process:
        try:
            deadline = time.monotonic() + SOON
            while emulator.emulator.counts().minted < 100 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.terminate()
            printed, _ = process.communicate(timeout=SOON)
        finally:
            process.kill()
    assert (128 + signal.SIGTERM, "") == (process.returncode, printed)


def test_a_room_that_is_not_there_is_a_failure(
    environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """A missing room fails the rehearsal at its first request."""
    emulator.emulator.configure(any_room=False)
    arguments = ("--attendees", "50", "--endpoint-url", emulator.url, "--room", ROOM)
    done = run(*arguments, environment=environment)
    assert (1, "") == (done.returncode, done.stdout)
    assert "ResourceNotFound" in done.stderr
    assert 1 == emulator.emulator.counts().requests


async def test_who_gets_no_token_is_counted(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """Viewers who get no token are counted by their error's class; all others get in."""
    service = open_service()
    event = LiveEvent(20, Arrivals("uniform", 0.2), quota=Quota(rate=2_000), reconnects=0)
    crowd = CrowdRun(event, service, [ROOM])
    running = asyncio.create_task(crowd.run())
    await until(lambda: crowd.progress().admitted > 3)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.ACCESS_DENIED, times=2))
    await running
    outcome = crowd.outcome()
    assert {"AccessDenied": 2} == outcome.failed
    assert (18, 20) == (outcome.admitted, outcome.arrived)
    assert (0, 2) == (crowd.progress().waiting, crowd.progress().failed)


@pytest.mark.fault(40)
async def test_a_refused_room_is_turned_away(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """After a handful of requests; who waits for the other room gets in."""
    ivschat_emulator.emulator.configure(any_room=False)
    room = ivschat_emulator.emulator.create_room(region="us-east-1")["arn"]
    service = open_service(quota=Quota(rate=100.0, learnt=5))
    event = LiveEvent(100, Arrivals("uniform", 0.1), quota=Quota(rate=100), reconnects=0)
    crowd = CrowdRun(event, service, [ROOM, room])
    await crowd.run()
    outcome = crowd.outcome()
    assert ({"ResourceNotFound": 50}, 50) == (dict(outcome.failed), outcome.admitted)
    assert service.stats().failed < 20


@pytest.mark.fault(40)
async def test_a_refused_account_ends_the_rehearsal(
    ivschat_emulator: ThreadedEmulatorServer, open_service: OpenService
) -> None:
    """With the error, at the price of what was under way."""
    service = open_service(quota=Quota(rate=50.0, learnt=2))
    event = LiveEvent(1_000, Arrivals("uniform", 0.1), quota=Quota(rate=50), reconnects=0)
    crowd = CrowdRun(event, service, [ROOM])
    running = asyncio.create_task(crowd.run())
    await until(lambda: crowd.progress().admitted > 3)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.BAD_SIGNATURE, times=None))
    with pytest.raises(AccessDenied):
        await running
    assert service.stats().failed <= 10
    assert 0 == service.stats().waiting


async def test_clients_come_back_while_the_doors_are_open(open_service: OpenService) -> None:
    """A viewer who reconnects or renews asks again, each time for a token of its own."""
    service: AsyncTokenService = open_service()
    event = LiveEvent(
        30,
        Arrivals("curve", counts=(29, 0, 1)),
        quota=Quota(rate=2_000),
        reconnects=3_600,
        renewal=Renewal.TOKEN,
    )
    crowd = CrowdRun(event, service, [ROOM, OTHER])
    await crowd.run()
    await until(lambda: service.stats().flights == 0)
    outcome, stats = crowd.outcome(), service.stats()
    assert outcome.returned > 0
    # Two clients were opened beforehand, with a token each. Who was still coming back at the end
    # has left a token in the stock.
    assert 30 + 2 + outcome.returned == stats.minted - stats.stocked + stats.stock
    assert stats.minted == sum(outcome.timeline.tokens) + 2


async def test_before_the_doors_nobody_is_in(open_service: OpenService) -> None:
    """Progress can be asked for before the event begins."""
    crowd = CrowdRun(LiveEvent(5, prewarm=1), open_service(), [ROOM])
    progress = crowd.progress()
    assert (-1, 0, 0, 0, 0, 0.0) == (
        progress.seconds,
        progress.arrived,
        progress.admitted,
        progress.waiting,
        progress.rate,
        progress.p95,
    )
    assert crowd.outcome().waits is None
