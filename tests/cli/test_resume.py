"""A job that goes on after any end: every attendee exactly once, and no token in the checkpoint."""

import json
import os
import random
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from aioivschat.emulator import Emulator, Fault, FaultKind, QuotaShape, ThreadedEmulatorServer
from support.commands import SOON, Command

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"


@pytest.fixture
def emulator() -> Iterator[ThreadedEmulatorServer]:
    """Run an emulator that refuses nobody."""
    with ThreadedEmulatorServer(Emulator(quota=QuotaShape("unlimited"))) as server:
        yield server


class Job:
    """The command on a file of attendees, with a checkpoint."""

    def __init__(self, folder: Path, emulator: ThreadedEmulatorServer) -> None:
        self.folder = folder
        self.emulator = emulator.emulator
        self.address = emulator.url.removeprefix("http://")
        self.input = folder / "attendees.csv"
        self.checkpoint = folder / "job.checkpoint"
        self.output = folder / "tokens.jsonl"
        self.part = folder / ".tokens.jsonl.part"
        self.options = ["--endpoint-url", emulator.url, "--resume", self.checkpoint.name]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = {
            **kept,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *options: str, **more: Any) -> Command:
        """Start a run."""
        source = [] if "-" in options else [self.input.name]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return Command(
            ["onboard", *source, *self.options, *options],
            cwd=self.folder,
            env=self.environment,
            **(pipes | more),
        )

    def run(self, *options: str, stdin: str = "", **more: Any) -> tuple[int, str, str]:
        """Run to the end; return the status and what was written."""
        with self.start(*options, stdin=subprocess.PIPE, **more) as process:
            out, err = process.communicate(stdin.encode())
        return process.wait(), out.decode(), err.decode()

    def kill_when(self, condition: Callable[[], bool], *options: str, **more: Any) -> str:
        """Start a run, kill it as soon as something is so, and return what it wrote."""
        with self.start(*options, **more) as process:
            deadline = time.monotonic() + SOON
            while not condition():
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.kill()
            out, _ = process.communicate()
        self._let_the_emulator_catch_up()
        return str(out, "utf-8")

    def _let_the_emulator_catch_up(self) -> None:
        """Wait until what was sent to it before has been counted: it answers in this order."""
        connection = HTTPConnection(self.address, timeout=SOON)
        connection.request("GET", "/_emulator")
        assert HTTPStatus.OK == connection.getresponse().status
        connection.close()

    def lines(self, text: str | None = None) -> list[int]:
        """Return the attendees of the output, by their lines."""
        text = self.output.read_text() if text is None else text
        return sorted(json.loads(line)["line"] for line in text.splitlines())

    def checkpoint_lines(self, kind: str) -> list[str]:
        """Return what the checkpoint says of a kind."""
        text = self.checkpoint.read_text() if self.checkpoint.exists() else ""
        return [line for line in text.splitlines() if f'"{kind}"' in line]

    def has_grown(self, size: int) -> bool:
        """Tell whether there is so much of the output."""
        return self.size() >= size

    def size(self) -> int:
        """Return how much there is of a growing output."""
        place = self.output if self.output.exists() else self.part
        return place.stat().st_size if place.exists() else 0


@pytest.fixture
def job(tmp_path: Path, emulator: ThreadedEmulatorServer) -> Job:
    """Return a job for 300 attendees, in an empty directory."""
    made = Job(tmp_path, emulator)
    made.input.write_text(rows(300))
    return made


def rows(count: int) -> str:
    """Return a file of so many attendees."""
    return "room,user\n" + "".join(f"{ROOM},canary-{number}\n" for number in range(count))


ALL = list(range(2, 302))
TO_FILE = ("--output", "tokens.jsonl")
SLOW, FAST = ("--rate", "100", "--learnt", "5"), ("--rate", "2000")


def minted_twice_at_most(said: str) -> int:
    """Return what the summary says."""
    told = re.search(r"at most ([\d,]+) tokens were minted twice", said)
    return int(told[1].replace(",", "")) if told else 0


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("kills", "stream"), [(1, ()), (4, ("--stream",))], ids=["whole", "stream"]
)
def test_a_killed_job_goes_on(job: Job, kills: int, stream: tuple[str, ...]) -> None:
    """However often a job is killed, each attendee has one line; double mints are counted."""
    randomly = random.Random(1)
    # Some tokens are on their way whenever the end comes.
    job.emulator.configure(latency=0.1)
    for _ in range(kills):
        more = job.size() + randomly.randint(1, 10_000)
        job.kill_when(partial(job.has_grown, more), *TO_FILE, *SLOW, *stream)
        assert bool(stream) == job.output.exists()
    status, _, said = job.run(*TO_FILE, *FAST, *stream)
    assert (0, ALL) == (status, job.lines())
    assert "300 attendees: 300 tokens, 0 failed" in said
    assert 300 < job.emulator.counts().minted <= 300 + minted_twice_at_most(said)
    assert {job.input, job.output, job.checkpoint} == set(job.folder.iterdir())


@pytest.mark.fault(29)
def test_the_checkpoint_holds_no_secret_and_is_its_owners_only(job: Job) -> None:
    """A checkpoint holds no token and no user id, and has mode 600 at all times."""
    job.kill_when(lambda: job.size() > 10_000, *TO_FILE, *SLOW, umask=0)
    for _ in range(2):
        assert 0o600 == stat.S_IMODE(job.checkpoint.stat().st_mode)
        text = job.checkpoint.read_text()
        assert "canary" not in text
        output = job.output if job.output.exists() else job.part
        assert 0o600 == stat.S_IMODE(output.stat().st_mode)
        for line in output.read_text().splitlines():
            if line.endswith("}"):
                assert json.loads(line)["token"] not in text
        assert 0 == job.run(*TO_FILE, *FAST, umask=0)[0]


def test_a_job_that_is_done_asks_for_nothing_again(job: Job) -> None:
    """Running a finished job again succeeds, asks for nothing and changes nothing."""
    assert 0 == job.run(*TO_FILE, *FAST)[0]
    before = job.output.read_bytes()
    status, _, said = job.run(*TO_FILE, *FAST)
    assert (0, before, 300) == (status, job.output.read_bytes(), job.emulator.counts().minted)
    assert "300 attendees were done before" in said


def test_failed_rows_are_done_as_well(job: Job) -> None:
    """A resumed job keeps the one line of each failed row, and status 2."""
    job.input.write_text(rows(20) + "ragged\n")
    for _ in range(2):
        status, _, said = job.run(*TO_FILE, *FAST)
        assert (2, list(range(2, 23))) == (status, job.lines())
        assert "21 attendees: 20 tokens, 1 failed" in said


def test_rows_that_were_added_at_the_end_are_done(job: Job) -> None:
    """Rows added to the input are done; an attendee repeated there is reported as such."""
    assert 0 == job.run(*TO_FILE, "--stream", *FAST)[0]
    job.input.write_text(rows(302) + f"{ROOM},canary-7\n")
    assert 2 == job.run(*TO_FILE, "--stream", *FAST)[0]
    assert [*ALL, 302, 303, 304] == job.lines()
    assert 302 == job.emulator.counts().minted


@pytest.mark.parametrize(
    "changed",
    [
        "room,user\n" + rows(300),
        rows(300).replace("canary-7\n", "canary-x\n"),
        rows(300).replace(f"{ROOM},canary-7\n", ""),
        rows(100),
        "",
    ],
    ids=["inserted", "replaced", "removed", "cut off", "empty"],
)
def test_another_input_is_refused_before_anything_is_asked_for(job: Job, changed: str) -> None:
    """A changed input is refused: its lines would mean other attendees."""
    job.kill_when(lambda: len(job.checkpoint_lines("done")) > 0, *TO_FILE, "--rate", "200")
    sent = job.emulator.counts().requests
    job.input.write_text(changed)
    status, _, said = job.run(*TO_FILE, *FAST)
    assert (2, sent) == (status, job.emulator.counts().requests)
    assert "attendees.csv: is not what it was" in said


def test_another_room_for_all_is_another_input(job: Job) -> None:
    """Another ``--room`` makes the input another one, as it decides what rows mean."""
    job.input.write_text("user\ncanary-1\n")
    assert 0 == job.run(*TO_FILE, "--room", ROOM)[0]
    status, _, said = job.run(*TO_FILE, "--room", ROOM.replace("Lobby", "Stage"))
    assert (2, True) == (status, "is not what it was" in said)


@pytest.mark.fault(29)
def test_a_torn_last_line_is_written_anew(job: Job) -> None:
    """A torn last line of output or checkpoint is cut off and written again."""
    job.kill_when(lambda: job.size() > 20_000, *TO_FILE, *SLOW, "--stream")
    whole = job.output.read_bytes()
    whole = whole[: whole.rindex(b"\n") + 1]
    job.output.write_bytes(whole[:-100])
    with job.checkpoint.open("ab") as file:
        file.write(b'{"begun": 99999, "input": "')
    assert 0 == job.run(*TO_FILE, *FAST, "--stream")[0]
    assert ALL == job.lines()
    sent = job.emulator.counts().requests
    assert 0 == job.run(*TO_FILE, *FAST, "--stream")[0]
    assert (ALL, sent) == (job.lines(), job.emulator.counts().requests)


def test_an_output_that_is_not_the_jobs_is_refused(job: Job) -> None:
    """An output that is missing, shortened or foreign is refused and left as it is."""
    job.kill_when(lambda: len(job.checkpoint_lines("done")) > 0, *TO_FILE, *SLOW, "--stream")
    kept, sent = job.output.read_bytes(), job.emulator.counts().requests
    foreign = kept + b"somebody's\n"
    for content in (None, kept[:300], kept + kept, foreign):
        job.output.unlink(missing_ok=True)
        if content is not None:
            job.output.write_bytes(content)
        status, _, said = job.run(*TO_FILE, *FAST, "--stream")
        assert (1, 1) == (status, len(said.splitlines()) - said.count("done before"))
        assert "tokens.jsonl: " in said
        assert content == (job.output.read_bytes() if content is not None else None)
    job.output.write_bytes(kept)
    assert sent == job.emulator.counts().requests
    assert 0 == job.run(*TO_FILE, *FAST, "--stream")[0]
    assert ALL == job.lines()


@pytest.mark.parametrize("content", [b"room,user\n", b"{}\n", b"not a line"])
def test_another_file_is_not_taken_for_a_checkpoint(job: Job, content: bytes) -> None:
    """A file that is no checkpoint is refused and left as it is."""
    job.checkpoint.write_bytes(content)
    job.checkpoint.chmod(0o644)
    status, _, said = job.run(*TO_FILE, *FAST)
    assert (1, content) == (status, job.checkpoint.read_bytes())
    assert 0o644 == stat.S_IMODE(job.checkpoint.stat().st_mode)
    assert "job.checkpoint: is not a checkpoint" in said
    assert 0 == job.emulator.counts().requests


def test_a_checkpoint_is_of_one_kind_of_output(job: Job) -> None:
    """A checkpoint of a job with an output file is refused for standard output."""
    assert 0 == job.run(*TO_FILE, *FAST)[0]
    status, out, said = job.run(*FAST)
    assert (1, "") == (status, out)
    assert "job.checkpoint: is of a job that wrote to a file" in said


@pytest.mark.fault(29)
def test_neither_checkpoint_nor_output_goes_through_a_link(job: Job) -> None:
    """Neither checkpoint nor output is followed through a link, in any run."""
    elsewhere = job.folder / "elsewhere"
    job.checkpoint.symlink_to(elsewhere)
    status, _, said = job.run(*TO_FILE, *FAST)
    assert (1, "aioivschat: job.checkpoint: is a symbolic link\n") == (status, said)
    job.checkpoint.unlink()
    for place in (job.part, job.output):
        place.symlink_to(elsewhere)
        assert 1 == job.run(*TO_FILE, *FAST)[0]
        place.unlink()
    job.kill_when(lambda: job.size() > 10_000, *TO_FILE, *SLOW, "--stream")
    job.output.rename(elsewhere)
    kept = elsewhere.read_bytes()
    job.output.symlink_to(elsewhere)
    status, _, said = job.run(*TO_FILE, *FAST, "--stream")
    assert (1, True) == (status, "tokens.jsonl: is a symbolic link" in said)
    assert kept == elsewhere.read_bytes()


def test_one_run_at_a_time(job: Job) -> None:
    """A second run of a job is refused while the first goes on: both would ask for everybody."""
    # The first run's input never ends: it outlasts the second on a machine however busy.
    with job.start("-", *TO_FILE, *FAST, stdin=subprocess.PIPE) as first:
        assert first.stdin is not None
        first.stdin.write(rows(1).encode())
        first.stdin.flush()
        while not job.checkpoint_lines("checkpoint"):
            time.sleep(0.01)
        status, _, said = job.run(*TO_FILE, *FAST)
        assert (1, "aioivschat: job.checkpoint: is in use by another run\n") == (status, said)
        first.kill()
        first.communicate()


@pytest.mark.fault(29)
def test_an_interrupt_is_an_end_like_others(job: Job) -> None:
    """An interrupted job exits with 130, leaves whole lines, and can be resumed."""
    with job.start(*TO_FILE, *SLOW) as process:
        while job.size() < 20_000:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=SOON)
    assert (130, b"") == (process.returncode, said)
    assert not job.output.exists()
    assert job.part.read_bytes().endswith(b"}\n")
    assert 0 == job.run(*TO_FILE, *FAST)[0]
    assert ALL == job.lines()


@pytest.mark.fault(29)
@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["whole", "stream"])
def test_a_full_disk_is_an_end_like_others(job: Job, stream: tuple[str, ...]) -> None:
    """Status 1 and the reason; the lines that were written are whole; with room it goes on."""
    status, _, said = job.run(*TO_FILE, *FAST, *stream, file_limit=20_000)
    assert (1, "aioivschat: File too large") == (status, said.splitlines()[-1])
    written = (job.output if stream else job.part).read_text()
    assert written.endswith("}\n")
    assert 0 < len(job.lines(written)) < 300
    assert 0 == job.run(*TO_FILE, *FAST, *stream)[0]
    assert ALL == job.lines()


def test_standard_output_goes_on_too(job: Job) -> None:
    """On standard output nobody is lost, and only the last few lines before a kill come twice."""
    first = job.kill_when(lambda: len(job.checkpoint_lines("done")) > 20, *SLOW)
    status, second, _ = job.run(*FAST)
    lines = first.splitlines(keepends=True)
    assert all(line.endswith("\n") for line in lines)
    assert (0, set(ALL)) == (status, {*job.lines(first), *job.lines(second)})
    twice = set(job.lines(first)) & set(job.lines(second))
    assert twice <= {json.loads(line)["line"] for line in lines[-30:]}


def test_standard_input_goes_on_if_it_is_the_same(job: Job) -> None:
    """A job from standard input resumes if the same input comes from its start."""
    text = job.input.read_text()
    job.kill_when(lambda: job.size() > 10_000, "-", *TO_FILE, *SLOW, stdin=_pipe_of(text))
    assert 2 == job.run("-", *TO_FILE, *FAST, stdin=text.replace("canary-3\n", "x\n"))[0]
    assert 0 == job.run("-", *TO_FILE, *FAST, stdin=text)[0]
    assert ALL == job.lines()


def _pipe_of(text: str) -> int:
    """Return a pipe that holds a text, to its end."""
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        file.write(text.encode())
    return read


def test_an_output_of_before_is_not_replaced_unasked(job: Job) -> None:
    """An older file is replaced only by ``--force``, and only where the job begins."""
    job.output.write_text("older\n")
    assert 1 == job.run(*TO_FILE, *FAST)[0]
    assert "older\n" == job.output.read_text()
    assert 0 == job.run(*TO_FILE, *FAST, "--force")[0]
    before = job.output.read_bytes()
    assert 0 == job.run(*TO_FILE, *FAST, "--force")[0]
    assert before == job.output.read_bytes()


def test_a_move_that_was_just_done_is_seen(job: Job) -> None:
    """A kill between the move of the whole file and the end of the run loses nothing."""
    job.kill_when(lambda: job.size() > 10_000, *TO_FILE, *SLOW)
    job.part.rename(job.output)
    assert 0 == job.run(*TO_FILE, *FAST)[0]
    assert ALL == job.lines()


@pytest.mark.fault(40)
@pytest.mark.parametrize(
    "to", [TO_FILE, (*TO_FILE, "--stream"), ()], ids=["file", "stream", "pipe"]
)
def test_credentials_that_end_cost_nobody_their_token(job: Job, to: tuple[str, ...]) -> None:
    """The job ends with the reason; nobody is booked as refused, and the next run does the rest."""
    with job.start(*to, *SLOW) as process:
        until_soon(lambda: job.emulator.counts().minted > 30)
        job.emulator.fail_next(Fault(FaultKind.BAD_SIGNATURE, times=None))
        out, said = process.communicate()
    assert 1 == process.wait()
    assert "InvalidSignatureException" in said.decode()
    written = out.decode() or (job.part if job.part.exists() else job.output).read_text()
    assert "error" not in written
    counts = job.emulator.counts()
    assert counts.requests - counts.minted <= 10
    job.emulator.reset()
    status, more, _ = job.run(*to, *FAST)
    assert 0 == status
    assert ALL == sorted({*job.lines(written), *job.lines(more or None)})


@pytest.mark.fault(40)
@pytest.mark.parametrize("to", [TO_FILE, ()], ids=["file", "pipe"])
def test_who_is_in_a_refused_room_stays_undone(job: Job, to: tuple[str, ...]) -> None:
    """All others are done; the same command tries those again, and none was minted twice."""
    job.emulator.configure(any_room=False)
    room = job.emulator.create_room(region="us-east-1")["arn"]
    job.input.write_text(rows(50).replace(ROOM, room) + rows(50).split("\n", 1)[1] + "ragged\n")
    status, out, said = job.run(*to, *FAST)
    assert 2 == status
    assert "50 of them are not done (ResourceNotFound: " in said
    assert [*range(2, 52), 102] == job.lines(out if not to else None)
    spent = job.emulator.counts().requests
    # In another run the room is still refused, at the price of a handful of requests.
    assert 2 == job.run(*to, *FAST)[0]
    assert job.emulator.counts().requests - spent <= 10
    job.emulator.configure(any_room=True)
    status, out, said = job.run(*to, *FAST)
    assert "minted twice" not in said
    assert "not done" not in said
    assert (2, "101 attendees: 100 tokens, 1 failed" in said) == (status, True)
    assert list(range(52, 102) if not to else range(2, 103)) == job.lines(out if not to else None)


def until_soon(condition: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
