"""Jobs that outlast a token's life: refused, unless somebody takes the tokens while they live."""

import json
import os
import signal
import stat
import subprocess
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from aioivschat._models import TokenRequest
from aioivschat.cli.onboard import JobTooLong, limit_job_length
from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer
from aioivschat.onboarding import Attendee
from support.commands import SOON, Command

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
ELSEWHERE = "arn:aws:ivschat:eu-west-1:123456789012:room/Lobby"


@pytest.fixture
def emulator() -> Iterator[ThreadedEmulatorServer]:
    """Run an emulator that refuses nobody."""
    with ThreadedEmulatorServer(Emulator(quota=QuotaShape("unlimited"))) as server:
        yield server


class Onboarding:
    """The command in a folder, on an emulator."""

    def __init__(self, folder: Path, emulator: ThreadedEmulatorServer) -> None:
        self.folder = folder
        self.emulator = emulator.emulator
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        self._environment = {**kept, **keys}
        self._options = ("--endpoint-url", emulator.url)

    def start(self, *options: str, stdin: int | None = None) -> Command:
        """Start it."""
        return Command(
            ["onboard", *options, *self._options],
            cwd=self.folder,
            env=self._environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def run(self, *options: str, stdin: str = "") -> tuple[int, str, str]:
        """Run it to the end; return the status and what it wrote."""
        with self.start(*options, stdin=subprocess.PIPE) as process:
            out, err = process.communicate(stdin, timeout=SOON)
        return process.wait(), out, err

    def begins(self, *options: str) -> bool:
        """Tell whether it gives a token; then it is ended."""
        with self.start(*options) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            process.terminate()
            process.communicate(timeout=SOON)
        return '"token"' in line


@pytest.fixture
def command(tmp_path: Path, emulator: ThreadedEmulatorServer) -> Onboarding:
    """Return the command in an empty folder."""
    return Onboarding(tmp_path, emulator)


def rows(count: int, room: str = ROOM) -> str:
    """Return so many rows of a file with the header ``room,user``."""
    return "".join(f"{room},canary-{number}\n" for number in range(count))


HEADER = "room,user\n"
# At 10 a second, 55 s give 550 tokens.
SLOW = ("--rate", "10")


@pytest.mark.parametrize("output", [(), ("--output", "tokens.jsonl")], ids=["stdout", "file"])
def test_a_job_that_outlasts_a_token_is_refused_with_the_arithmetic(
    command: Onboarding, output: tuple[str, ...]
) -> None:
    """Before anything is asked for, and without a file."""
    attendees = command.folder / "attendees.csv"
    attendees.write_text(HEADER + rows(600))
    status, out, said = command.run("attendees.csv", *SLOW, *output)
    assert (2, "") == (status, out)
    assert said == (
        "aioivschat: 600 attendees at 10 a second take 60 s, but a token lives 60 s: at most 550 "
        "can be used together, with 5 s left to connect. Use --stream, with a consumer that takes "
        "each token as it comes\n"
    )
    assert 0 == command.emulator.counts().requests
    assert [attendees] == list(command.folder.iterdir())


@pytest.mark.parametrize(
    ("text", "options", "fits"),
    [
        (rows(550), (), True),
        (rows(551), (), False),
        (rows(551), ("--stream",), True),
        (rows(551), ("--burst", "1"), True),
        (rows(550) + rows(10), (), True),
        (rows(550) + "ragged\n\n", (), True),
        (rows(550) + rows(550, ELSEWHERE), (), True),
        (rows(551) + rows(1, ELSEWHERE), (), False),
    ],
    ids=["most", "more", "stream", "burst", "twice", "bad", "regions", "region"],
)
def test_what_counts_is_how_many_share_a_quota(
    command: Onboarding, text: str, options: tuple[str, ...], fits: bool
) -> None:
    """Neither rows that get no token nor those of another region."""
    (command.folder / "attendees.csv").write_text(HEADER + text)
    assert fits == command.begins("attendees.csv", *SLOW, *options)


def test_a_list_from_a_pipe_is_refused_once_it_is_too_long(command: Onboarding) -> None:
    """Nobody can know before."""
    long = HEADER + rows(600)
    status, _, said = command.run("-", *SLOW, "--in-flight", "700", stdin=long)
    assert (2, True) == (status, "551 or more attendees at 10 a second" in said)
    output = ("--output", "tokens.jsonl")
    assert 2 == command.run("-", *SLOW, "--in-flight", "700", *output, stdin=long)[0]
    assert [] == list(command.folder.iterdir())


def test_a_list_that_comes_more_slowly_than_the_quota_never_ends_too_long() -> None:
    """Somebody who waits uses its tokens as they come; one that catches up is refused."""
    now = 0.0
    options = Namespace(rate=10.0, burst=None)
    attendees = (Attendee(n, TokenRequest(ROOM, f"canary-{n}")) for n in range(1, 10_000))
    fitting = limit_job_length(options, attendees, lambda: now)
    for _ in range(2000):
        next(fitting)
        now += 0.11
    now -= 50.0
    with pytest.raises(JobTooLong, match="2,001 or more"):
        next(fitting)


@pytest.mark.fault(29)
def test_a_streamed_file_grows_by_whole_lines(command: Onboarding) -> None:
    """Its owner's only, there from the start; after an interrupt too it holds what was written."""
    (command.folder / "attendees.csv").write_text(HEADER + rows(1000))
    output = command.folder / "tokens.jsonl"
    options = ("attendees.csv", "--rate", "50", "--stream", "--output", output.name)
    with command.start(*options) as process:
        deadline = time.monotonic() + SOON
        while not output.exists() or output.stat().st_size < 5000:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert 0o600 == stat.S_IMODE(output.stat().st_mode)
        process.send_signal(signal.SIGINT)
        assert ("", "") == process.communicate(timeout=SOON)
    assert 130 == process.returncode
    text = output.read_text()
    assert text.endswith("}\n")
    assert all("token" in json.loads(line) for line in text.splitlines())


@pytest.mark.fault(29)
def test_a_streamed_file_replaces_nothing_unasked_and_is_never_a_link(command: Onboarding) -> None:
    """By force it is another file: whoever still reads the older one reads no token."""
    output = command.folder / "tokens.jsonl"
    output.write_text("older\n")
    options = ("-", "--stream", "--output", output.name)
    assert 1 == command.run(*options, stdin=HEADER + rows(3))[0]
    assert "older\n" == output.read_text()
    with output.open() as older:
        assert 0 == command.run(*options, "--force", stdin=HEADER + rows(3))[0]
        assert "older\n" == older.read()
    assert 3 == len(output.read_text().splitlines())
    output.unlink()
    output.symlink_to(command.folder / "elsewhere")
    assert 1 == command.run(*options, "--force", stdin=HEADER + rows(3))[0]
    assert [output] == list(command.folder.iterdir())
