"""What the command reads from and writes to, as shells and other programs hand it over."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import commands
from support.commands import SOON, Command

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
FAST = ("--room", ROOM, "--rate", "5000")
NOTICE = b"aioivschat: these tokens are from the local emulator"
PIPE = subprocess.PIPE

pytestmark = pytest.mark.fault(51)


def users(text: str | bytes) -> list[str]:
    """Return whose lines an output has; each is whole."""
    return [json.loads(line)["user"] for line in text.splitlines()]


def names(count: int) -> list[str]:
    """Return so many users."""
    return [f"viewer-{number}" for number in range(count)]


@pytest.fixture
def attendees(tmp_path: Path) -> str:
    """Return a file of 1,000 attendees, whose lines are more than a pipe holds."""
    path = tmp_path / "attendees.csv"
    path.write_text("\n".join(["user", *names(1000)]))
    return str(path)


@contextmanager
def with_full_output(arguments: Sequence[str], folder: Path) -> Iterator[tuple[Command, int]]:
    """Run the command until its standard output, which does not block, takes no more.

    Gives it and the other end of the pipe.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    with Command(arguments, cwd=folder, stdout=write, stderr=PIPE) as process:
        deadline = time.monotonic() + SOON
        while select.select((), (write,), (), 0)[1]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.close(write)
        try:
            yield process, read
        finally:
            process.kill()


@pytest.mark.parametrize("more", [[], ["--resume", "checkpoint"]], ids=["plain", "resumable"])
def test_standard_output_that_does_not_block_gets_every_line(
    tmp_path: Path, attendees: str, more: Sequence[str]
) -> None:
    """A program that shares its pipe may have set it so; what is read late is whole as well."""
    with with_full_output(["onboard", attendees, *FAST, *more], tmp_path) as (process, read):
        with os.fdopen(read, "rb") as output:
            assert sorted(names(1000)) == sorted(users(output.read()))
        assert 0 == process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_for_standard_output_that_does_not_block_ends_by_a_signal(
    tmp_path: Path, attendees: str, number: signal.Signals
) -> None:
    """Though nobody reads."""
    with with_full_output(["onboard", attendees, *FAST], tmp_path) as (process, read):
        process.send_signal(number)
        assert 128 + number == process.wait()
        with os.fdopen(read, "rb") as output:
            *lines, _ = output.read().split(b"\n")
    assert len(lines) == len(set(users(b"\n".join(lines)))) > 0


def test_standard_output_that_does_not_block_may_be_closed_by_its_reader(
    tmp_path: Path, attendees: str
) -> None:
    """As ``head`` does it: status 1, and no message but the notice."""
    with with_full_output(["onboard", attendees, *FAST], tmp_path) as (process, read):
        os.close(read)
        assert 1 == process.wait()
        assert process.stderr is not None
        assert 1 == len(process.stderr.read().splitlines())


def test_input_that_does_not_block_is_read_to_its_end(tmp_path: Path) -> None:
    """A pause of its writer is not its end."""
    read, write = os.pipe()
    os.set_blocking(read, False)
    arguments = ["onboard", "-", *FAST]
    with Command(arguments, cwd=tmp_path, stdin=read, stdout=PIPE, stderr=PIPE) as process:
        os.close(read)
        assert process.stdout is not None
        with os.fdopen(write, "wb", buffering=0) as rows:
            rows.write(b"user\n")
            for user in names(3):
                rows.write(user.encode()[:3])
                time.sleep(0.05)
                rows.write(user.encode()[3:] + b"\n")
                assert [user] == users(process.stdout.readline())
        assert 0 == process.wait()


@pytest.mark.parametrize("gone", ["full", "reader"])
def test_messages_that_nobody_can_read_are_no_failure(
    tmp_path: Path, attendees: str, gone: str
) -> None:
    """The tokens are there, and the status says so."""
    if gone == "full":
        errors = os.open("/dev/full", os.O_WRONLY)
    else:
        read, errors = os.pipe()
        os.close(read)
    done = commands.run(["onboard", attendees, *FAST], cwd=tmp_path, stdout=PIPE, stderr=errors)
    os.close(errors)
    assert (0, 1000) == (done.returncode, len(users(done.stdout)))


@contextmanager
def writing(folder: Path, *more: str) -> Iterator[Command]:
    """Run a job that writes to a file and waits for its attendees."""
    arguments = ["onboard", "-", *FAST, "--output", "tokens.jsonl", *more]
    with Command(arguments, cwd=folder, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith(NOTICE)
            yield process
        finally:
            process.kill()


MODES = {
    "plain": [],
    "force": ["--force"],
    "stream": ["--stream"],
    "stream-force": ["--stream", "--force"],
}


@pytest.mark.parametrize("second", [*MODES, "resume"])
@pytest.mark.parametrize("first", [*MODES, "resume"])
def test_two_runs_never_write_to_one_file(tmp_path: Path, first: str, second: str) -> None:
    """The second is refused before it asks for anything; what the first writes is whole."""
    modes = {name: {**MODES, "resume": ["--resume", name]} for name in ("one", "two")}
    with writing(tmp_path, *modes["one"][first]) as process:
        arguments = ["onboard", "-", *FAST, "--output", "tokens.jsonl", *modes["two"][second]]
        done = commands.run(arguments, text=b"user\nother\n", cwd=tmp_path, stderr=PIPE)
        refusal = b"aioivschat: tokens.jsonl: is in use by another run\n"
        assert (1, refusal) == (done.returncode, done.stderr)
        out, _ = process.communicate(b"user\nviewer\n")
        assert (0, b"") == (process.returncode, out)
    assert ["viewer"] == users((tmp_path / "tokens.jsonl").read_text())
    assert {"tokens.jsonl", "one", "two"} >= {file.name for file in tmp_path.iterdir()}


def test_a_run_that_was_killed_is_in_nobodys_way(tmp_path: Path) -> None:
    """The lock ends with the process, however that ends."""
    with writing(tmp_path) as process:
        process.kill()
        process.wait()
    arguments = ["onboard", "-", *FAST, "--output", "tokens.jsonl"]
    done = commands.run(arguments, text=b"user\nviewer\n", cwd=tmp_path, stderr=PIPE)
    assert 0 == done.returncode
    assert ["viewer"] == users((tmp_path / "tokens.jsonl").read_text())
    assert not (tmp_path / ".tokens.jsonl.lock").exists()


def test_many_runs_at_once_write_one_file(tmp_path: Path) -> None:
    """One of them writes it; each other is refused, as another run is there or the file is."""
    arguments = ["onboard", "-", *FAST, "--output", "tokens.jsonl"]
    done: dict[str, int] = {}

    def run(user: str) -> None:
        text = f"user\n{user}\n".encode()
        done[user] = commands.run(arguments, text=text, cwd=tmp_path, stderr=PIPE).returncode

    threads = [threading.Thread(target=run, args=[user]) for user in names(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert [0, 1, 1, 1, 1, 1] == sorted(done.values())
    (winner,) = users((tmp_path / "tokens.jsonl").read_text())
    assert 0 == done[winner]
    assert ["tokens.jsonl"] == [file.name for file in tmp_path.iterdir()]


@pytest.mark.parametrize("more", [[], ["--stream"], ["--resume", "checkpoint"]], ids=str)
@pytest.mark.parametrize("folder", ["missing", "file", "/proc"])
def test_a_place_that_takes_no_file_is_told_by_the_outputs_name(
    tmp_path: Path, folder: str, more: Sequence[str]
) -> None:
    """One line, before anything is asked for."""
    (tmp_path / "file").touch()
    output = f"{folder}/tokens.jsonl"
    arguments = ["onboard", "-", *FAST, "--output", output, *more]
    done = commands.run(arguments, text=b"user\nviewer\n", cwd=tmp_path, stdout=PIPE, stderr=PIPE)
    assert (1, b"") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith(f"aioivschat: {output}: ".encode())
