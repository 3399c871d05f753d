"""The command, run as a process: what it writes, where, and how it ends."""

import json
import os
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer
from support import commands
from support.commands import Command
from support.hostile import hostile_environment
from support.paths import ROOT

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/Lobby"
EXAMPLE = ROOT / "examples" / "attendees.csv"
COMMAND = (sys.executable, "-m", "aioivschat")
NOTICE = "aioivschat: these tokens are from the local emulator and do not connect to AWS"
FAST = ("--rate", "2000")
SOON = 30.0  # seconds; far more than anything here takes


def rows(count: int, start: int = 0) -> str:
    """Return a file of so many attendees."""
    lines = (f"{ROOM},canary-{number}" for number in range(start, start + count))
    return "room,user\n" + "\n".join(lines) + "\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Return an environment with credentials, and with nothing else of AWS."""
    home = tmp_path / "home"
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **kept,
        "HOME": str(home),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """Return an empty directory."""
    place = tmp_path / "workplace"
    place.mkdir()
    return place


@pytest.fixture
def emulator() -> Iterator[ThreadedEmulatorServer]:
    """Run an emulator that refuses nobody."""
    with ThreadedEmulatorServer(Emulator(quota=QuotaShape("unlimited"))) as server:
        yield server


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(environment: dict[str, str], workplace: Path) -> Run:
    """Return what runs the command to its end."""

    def run(*arguments: str, stdin: str | bytes = "", **options: Any) -> Any:
        raw = stdin if isinstance(stdin, bytes) else stdin.encode()
        done = commands.run(
            arguments,
            text=raw,
            env={**environment, **options.pop("environment", {})},
            cwd=workplace,
            **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options),
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()
        )

    return run


@contextmanager
def started(
    arguments: Sequence[str], environment: dict[str, str], workplace: Path
) -> Iterator[Command]:
    """Run the command while the block does."""
    with Command(
        arguments,
        env=environment,
        cwd=workplace,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def outcomes(text: str) -> list[dict[str, Any]]:
    """Return the lines of the output."""
    return [json.loads(line) for line in text.splitlines()]


def test_onboarding_the_example_on_the_emulator(run: Run, workplace: Path) -> None:
    """The first sixty attendees of the example each get a token of their own."""
    attendees = workplace / "some.csv"
    attendees.write_text("".join(EXAMPLE.read_text().splitlines(keepends=True)[:61]))
    done = run("onboard", "some.csv", *FAST)
    assert done.returncode == 0
    made = outcomes(done.stdout)
    assert {each["line"] for each in made} == set(range(2, 62))
    assert len({each["token"] for each in made}) == 60
    assert set(made[0]) == {
        "line",
        "room",
        "user",
        "token",
        "tokenExpirationTime",
        "sessionExpirationTime",
    }
    notice, summary = done.stderr.splitlines()
    assert notice.startswith(NOTICE)
    assert re.fullmatch(
        r"60 attendees: 60 tokens, 0 failed in \d+\.\d s \(\d+ a second of 2000\)", summary
    )


def test_quiet_leaves_only_the_notice(run: Run) -> None:
    """With ``--quiet`` only the notice stays that the tokens are not real."""
    done = run("onboard", "-", "--quiet", *FAST, stdin=rows(3))
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1)


@pytest.mark.fault(28)
def test_bad_rows_are_reported_and_all_others_done(
    run: Run, emulator: ThreadedEmulatorServer
) -> None:
    """Bad rows make the status 2; each good row costs one request, a bad one none."""
    text = (
        "\N{BYTE ORDER MARK}room,user,attributes\n"
        f"{ROOM},canary-1,\n"
        f"{ROOM},canary-2\n"
        f'{ROOM},"canary-3,\n'
        f"{ROOM},canary-1,\n"
        f'{ROOM},canary-5,"{{""a"": NaN}}"\n'
        f"{ROOM},canary-6,\n"
    )
    done = run("onboard", "-", "--endpoint-url", emulator.url, stdin=text)
    made = {each["line"]: each for each in outcomes(done.stdout)}
    assert done.returncode == 2
    assert {line for line, each in made.items() if "token" in each} == {2, 7}
    assert {line for line, each in made.items() if "error" in each} == {3, 4, 5, 6}
    assert made[6]["user"] == "canary-5"
    assert "user" not in made[4]
    assert {each["error"]["code"] for each in made.values() if "error" in each} == {
        "InvalidRequest"
    }
    assert emulator.emulator.counts().requests == 2
    assert "6 attendees: 2 tokens, 4 failed in" in done.stderr


def test_refused_rows_fail_on_their_own(run: Run, emulator: ThreadedEmulatorServer) -> None:
    """A row that AWS refuses has the error as its outcome, and the status is 2."""
    emulator.emulator.configure(any_room=False)
    done = run("onboard", "-", "--endpoint-url", emulator.url, stdin=rows(2))
    assert done.returncode == 2
    assert [each["error"]["code"] for each in outcomes(done.stdout)] == ["ResourceNotFound"] * 2


def test_neither_tokens_nor_users_are_on_standard_error(
    run: Run, emulator: ThreadedEmulatorServer
) -> None:
    """Standard error holds no token, no user id and no traceback, whatever fails."""
    emulator.emulator.configure(any_room=False)
    endpoint = ("--endpoint-url", emulator.url)
    done = [
        run("onboard", "-", *FAST, stdin=rows(20) + f"{ROOM},canary-1\ncanary\n"),
        run("onboard", "-", *endpoint, stdin=rows(3)),
        run("onboard", "-", *endpoint, stdin="canary-1,canary-2\n"),
        run("issue", "--room", ROOM, "--user", "canary" * 30),
        run("issue", "--room", "canary", "--user", "canary"),
        run("issue", "--room", ROOM, "--user", "canary", "--capability", "ROOT"),
        run("issue", "--room", ROOM, "--user", "canary", *endpoint),
    ]
    assert [each.returncode for each in done] == [2, 2, 2, 2, 2, 2, 1]
    tokens = [each["token"] for each in outcomes(done[0].stdout) if "token" in each]
    assert len(tokens) == 20
    for each in done:
        assert "canary" not in each.stderr
        assert "Traceback" not in each.stderr
        assert not any(token in each.stderr for token in tokens)


def test_json_lines_and_a_room_for_all(run: Run) -> None:
    """First character or ``--format`` tell CSV from JSON lines; ``--room`` fills in rooms."""
    done = [
        run("onboard", "-", "--room", ROOM, *FAST, stdin=' {"user": "canary-1"}\n'),
        run("onboard", "-", "--format", "jsonl", "--room", ROOM, stdin='{"user": "canary-1"}'),
        run("onboard", "-", "--format", "csv", "--room", ROOM, stdin="user\ncanary-1\n"),
    ]
    assert [each.returncode for each in done] == [0, 0, 0]
    assert {(each["room"], each["user"]) for run_ in done for each in outcomes(run_.stdout)} == {
        (ROOM, "canary-1")
    }


def test_tokens_come_while_standard_input_is_open(
    environment: dict[str, str], workplace: Path
) -> None:
    """Each row from a pipe is answered before the next is written."""
    arguments = ["onboard", "-", "--room", ROOM]
    with started(arguments, environment, workplace) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"user\n")
        for number in range(3):
            process.stdin.write(f"canary-{number}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["user"] == f"canary-{number}"
        process.stdin.close()
        assert process.wait(SOON) == 0


@pytest.mark.fault(29)
def test_output_is_its_owners_only_and_is_not_overwritten(run: Run, workplace: Path) -> None:
    """Without ``--force`` a second run on the same output is refused; the file has mode 600."""
    onboard = ("onboard", "-", "--output", "tokens.jsonl", *FAST)
    output = workplace / "tokens.jsonl"
    done = run(*onboard, stdin=rows(3), umask=0)
    assert (done.returncode, done.stdout) == (0, "")
    assert [output] == list(workplace.iterdir())
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    first = output.read_text()
    assert len(outcomes(first)) == 3
    refused = run(*onboard, stdin=rows(4))
    assert (1, first) == (refused.returncode, output.read_text())
    assert refused.stderr == "aioivschat: tokens.jsonl: exists already\n"
    assert run(*onboard, "--force", stdin=rows(4)).returncode == 0
    assert len(outcomes(output.read_text())) == 4


@pytest.mark.fault(29)
def test_output_through_a_link_is_refused(run: Run, workplace: Path) -> None:
    """An output that is a symbolic link is refused, with ``--force`` too."""
    (workplace / "tokens.jsonl").symlink_to("elsewhere")
    done = run("onboard", "-", "--output", "tokens.jsonl", "--force", stdin=rows(3))
    assert done.returncode == 1
    assert done.stderr == "aioivschat: tokens.jsonl: is a symbolic link\n"
    assert not (workplace / "elsewhere").exists()


@pytest.mark.fault(29)
@pytest.mark.parametrize("name", ["tokens.csv", "TOKENS.CSV", "tokens.tsv"])
def test_no_file_is_written_that_a_spreadsheet_would_open(
    run: Run, emulator: ThreadedEmulatorServer, workplace: Path, name: str
) -> None:
    """Outputs named like a spreadsheet are refused: a user id could become a cell that is run."""
    attendees = json.dumps({"room": ROOM, "user": "canary,=1+1,"})
    endpoint = ("--endpoint-url", emulator.url)
    done = run("onboard", "-", *endpoint, "--output", name, stdin=attendees)
    assert (2, "") == (done.returncode, done.stdout)
    assert "--output: JSON lines are written, not CSV" in done.stderr
    assert ([], 0) == (list(workplace.iterdir()), emulator.emulator.counts().requests)


def test_output_with_failed_rows_is_complete(run: Run, workplace: Path) -> None:
    """An output file holds the errors of failed rows as well."""
    done = run("onboard", "-", "--output", "tokens.jsonl", *FAST, stdin=rows(2) + "ragged\n")
    assert done.returncode == 2
    assert len(outcomes((workplace / "tokens.jsonl").read_text())) == 3


@pytest.mark.fault(29)
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_leaves_no_file(
    environment: dict[str, str],
    workplace: Path,
    emulator: ThreadedEmulatorServer,
    number: signal.Signals,
    status: int,
) -> None:
    """A signal in the middle of a job leaves no output file and no traceback."""
    attendees = workplace / "attendees.csv"
    attendees.write_text(rows(500))
    arguments = ["onboard", "attendees.csv", "--output", "tokens.jsonl", "--rate", "10"]
    arguments += ["--endpoint-url", emulator.url]
    with started(arguments, environment, workplace) as process:
        until(lambda: emulator.emulator.counts().minted >= 2)
        assert {".csv", ".lock", ".part"} == {file.suffix for file in workplace.iterdir()}
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON)
    assert (status, b"") == (process.returncode, stderr)
    assert [attendees] == list(workplace.iterdir())


@pytest.mark.parametrize("source", ["-", "fifo"])
def test_an_interrupt_ends_a_wait_for_input(
    environment: dict[str, str], workplace: Path, source: str
) -> None:
    """An interrupt ends the command while its thread is blocked reading a pipe."""
    os.mkfifo(workplace / "fifo")
    with started(["onboard", source, "--room", ROOM], environment, workplace) as process:
        assert process.stderr is not None
        with (workplace / "fifo").open("wb") if source == "fifo" else nullcontext():
            assert process.stderr.readline().decode().startswith(NOTICE)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(SOON) == 130
        assert process.stderr.read() == b""


def test_an_interrupt_ends_a_wait_for_whoever_reads_the_output(
    environment: dict[str, str], workplace: Path, emulator: ThreadedEmulatorServer
) -> None:
    """A full pipe stops the requests, and an interrupt ends the command that waits for it."""
    attendees = workplace / "attendees.csv"
    attendees.write_text(rows(2000))
    arguments = ["onboard", "attendees.csv", "--endpoint-url", emulator.url, "--rate", "5000"]
    arguments += ["--in-flight", "20"]
    with started(arguments, environment, workplace) as process:
        until(lambda: emulator.emulator.counts().minted >= 100)
        minted = -1
        while minted != (minted := emulator.emulator.counts().minted):
            time.sleep(0.3)
        assert minted < 1000  # a pipe holds about 130 lines
        process.send_signal(signal.SIGINT)
        # The pipe is still full: nobody reads until it has ended.
        assert process.wait(SOON) == 130


@pytest.mark.fault(29)
def test_a_full_disk_leaves_no_file(run: Run, workplace: Path) -> None:
    """The status is 1, and the reason is on one line."""
    onboard = ("onboard", "-", "--output", "tokens.jsonl", *FAST)
    done = run(*onboard, stdin=rows(200), file_limit=20_000)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["aioivschat: File too large"]
    assert list(workplace.iterdir()) == []


@pytest.mark.fault(29)
def test_a_full_disk_under_standard_output_is_a_failure(run: Run) -> None:
    """A full disk under standard output is status 1 with the reason, as for ``cat``."""
    with Path("/dev/full").open("wb") as full:
        done = run("onboard", "-", *FAST, stdin=rows(3), stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == ["aioivschat: No space left on device"]


def test_closed_standard_output_ends_the_job_quietly(
    environment: dict[str, str], workplace: Path
) -> None:
    """A reader that closes the pipe, as ``head -1`` does, ends the job without a message."""
    (workplace / "attendees.csv").write_text(rows(2000))
    arguments = ["onboard", "attendees.csv", *FAST]
    with started(arguments, environment, workplace) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(SOON) == 1
        assert len(process.stderr.read().splitlines()) == 1


@pytest.mark.parametrize(
    ("closed", "status", "written"),
    [("<&-", 1, 0), (">&-", 1, 0), ("2>&-", 0, 3)],
)
def test_a_stream_that_is_closed_from_the_start_confuses_nothing(
    environment: dict[str, str], workplace: Path, closed: str, status: int, written: int
) -> None:
    """If a standard stream is closed from the start, no message is among the tokens."""
    (workplace / "attendees.csv").write_text(rows(3))
    source = "-" if closed == "<&-" else "attendees.csv"
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *COMMAND, "onboard", source, *FAST],
        check=False,
        env=environment,
        cwd=workplace,
        capture_output=True,
        timeout=SOON,
    )
    assert (status, written) == (done.returncode, len(outcomes(done.stdout.decode())))
    assert b"canary" not in done.stderr
    assert b"unexpected" not in done.stderr


def terminal(run: Run, *arguments: str, **options: Any) -> tuple[int, str]:
    """Run with a terminal as standard error; return the status and what it shows."""
    ours, theirs = pty.openpty()
    try:
        done = run(*arguments, stderr=theirs, **options)
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65536):
                shown += part
        except OSError:
            pass  # how Linux says that the other side is closed
    finally:
        os.close(ours)
    return done.returncode, shown.decode()


COLUMNS = {"environment": {"COLUMNS": "120", "TERM": "xterm"}}


def test_a_terminal_shows_progress(run: Run, workplace: Path) -> None:
    """A terminal shows what is done, what failed and the pace; the summary comes last."""
    (workplace / "attendees.csv").write_text(rows(60) + "ragged\n")
    status, shown = terminal(run, "onboard", "attendees.csv", "--rate", "100", **COLUMNS)
    assert status == 2
    assert re.search(r"\d+ of 61 .*1 failed .*\d+/100 a second", shown)
    assert "61 attendees: 60 tokens, 1 failed in" in shown.splitlines()[-1]
    assert "canary" not in shown


def test_progress_of_a_pipe_has_no_total(run: Run) -> None:
    """Progress shows ``?`` for the total of a pipe."""
    _, shown = terminal(run, "onboard", "-", "--rate", "100", stdin=rows(60), **COLUMNS)
    assert re.search(r"\d+ of \? ", shown)


def test_quiet_shows_no_progress(run: Run) -> None:
    """With ``--quiet`` a terminal shows no progress."""
    _, shown = terminal(run, "onboard", "-", "--quiet", *FAST, stdin=rows(3), **COLUMNS)
    assert len(shown.splitlines()) == 1


def test_the_command_works_without_rich(environment: dict[str, str], workplace: Path) -> None:
    """Without rich, ``onboard`` shows no bar and works as otherwise."""
    without = (
        "import sys; sys.modules['rich'] = None\nimport aioivschat.cli as cli; sys.exit(cli.main())"
    )

    def run_without(*arguments: str, **options: Any) -> Any:
        return subprocess.run(
            [sys.executable, "-c", without, *arguments],
            check=False,
            input=rows(3).encode(),
            env={**environment, **options.pop("environment")},
            cwd=workplace,
            timeout=SOON,
            stdout=subprocess.PIPE,
            **options,
        )

    status, shown = terminal(run_without, "onboard", "-", *FAST, **COLUMNS)
    assert (status, len(shown.splitlines())) == (0, 2)
    assert "3 attendees: 3 tokens" in shown


def test_issue_prints_one_line(run: Run) -> None:
    """``issue`` prints one JSON line with the token and its times."""
    arguments = ["issue", "--room", ROOM, "--user", "canary", "--session-minutes", "30"]
    arguments += ["--capability", "SEND_MESSAGE", "--capability", "DELETE_MESSAGE"]
    done = run(*arguments, "--attribute", "displayName=Viewer 1", "--attribute", "formula=1=1")
    assert done.returncode == 0
    (made,) = outcomes(done.stdout)
    assert (made["room"], made["user"]) == (ROOM, "canary")
    assert {"token", "tokenExpirationTime", "sessionExpirationTime"} < set(made)
    assert done.stderr.startswith(NOTICE)


@pytest.mark.fault(48)
@pytest.mark.parametrize(
    "arguments",
    [
        ("issue", "--room", ROOM, "--user", "canary"),
        ("onboard", "attendees.csv", *FAST),
        ("rehearse", "--attendees", "20"),
        ("plan", "--attendees", "20"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_the_emulator_needs_and_reads_no_configuration(
    run: Run, workplace: Path, arguments: tuple[str, ...]
) -> None:
    """Whatever is in the user's variables, files and proxies, the quick start works."""
    (workplace / "attendees.csv").write_text(rows(3))
    assert 0 == run(*arguments, environment=hostile_environment(workplace)).returncode


@pytest.mark.fault(48)
def test_another_host_is_asked_in_the_clear_only_if_it_is_named(run: Run) -> None:
    """``--allow-http`` names it: then it is asked, and not found."""
    issue = ("issue", "--room", ROOM, "--user", "canary", "--timeout", "0.5")
    endpoint = ("--endpoint-url", "http://emulator.invalid:8000")
    refused = run(*issue, *endpoint, "--allow-http", "other.invalid")
    assert (2, True) == (refused.returncode, "allow_http=" in refused.stderr)
    assert 1 == run(*issue, *endpoint, "--allow-http", "emulator.invalid").returncode


def test_a_profile_gives_the_credentials(
    run: Run, environment: dict[str, str], emulator: ThreadedEmulatorServer
) -> None:
    """``--profile`` chooses the credentials, and a missing profile is one line."""
    aws = Path(environment["HOME"]) / ".aws"
    aws.mkdir()
    (aws / "credentials").write_text(
        "[event]\naws_access_key_id = testing\naws_secret_access_key = testing\n"
    )
    arguments = ["issue", "--room", ROOM, "--user", "canary", "--endpoint-url", emulator.url]
    assert run(*arguments, "--profile", "event").returncode == 0
    done = run(*arguments, "--profile", "other")
    assert done.returncode == 1
    assert done.stderr.startswith("aioivschat: ProfileNotFound: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["onboard"], "ATTENDEES"),
        (["onboard", "-", "--rate", "0"], "--rate"),
        (["onboard", "-", "--rate", "nan"], "--rate"),
        (["onboard", "-", "--rate", "fast"], "--rate"),
        (["onboard", "-", "--in-flight", "0"], "--in-flight"),
        (["onboard", "-", "--timeout", "-1"], "--timeout"),
        (["onboard", "-", "--force"], "--force needs --output"),
        (["onboard", "-", "--output", "a", "--resume", "./a"], "--resume needs a file of its own"),
        (["onboard", "-", "--profile", "event"], "--profile needs"),
        (["onboard", "-", "--allow-http", "emulator"], "--allow-http needs"),
        (["onboard", "-", "--aws", "--endpoint-url", "http://127.0.0.1:9"], "exclude each other"),
        (["onboard", "-", "--room", "lobby"], "roomIdentifier"),
        (["onboard", "-", "--endpoint-url", "http://192.0.2.1"], "endpoint_url"),
        (["issue", "--room", ROOM], "--user"),
        (["issue", "--room", ROOM, "--user", "canary", "--attribute", "a"], "KEY=VALUE"),
        (["issue", "--room", ROOM, "--user", "canary", "--session-minutes", "181"], "181"),
    ],
)
def test_wrong_use_is_status_2(run: Run, arguments: list[str], reason: str) -> None:
    """Wrong use does nothing and gives its reason in the last line."""
    done = run(*arguments, stdin=rows(1))
    assert (done.returncode, done.stdout) == (2, "")
    assert reason in done.stderr.splitlines()[-1]


def test_other_failures_are_status_1_and_one_line(run: Run, emulator: Any) -> None:
    """A missing file, missing credentials or an unreachable endpoint: status 1 and one line."""
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    endpoint = ("--endpoint-url", emulator.url)
    issue = ("issue", "--room", ROOM, "--user", "canary")
    done = [
        run("onboard", "missing.csv"),
        run("onboard", "."),
        run("onboard", "-", "--output", "missing/tokens.jsonl"),
        run("onboard", "-", *endpoint, stdin=rows(3), environment=nothing),
        run(*issue, *endpoint, environment=nothing),
        run(*issue, "--endpoint-url", "http://127.0.0.1:9", "--timeout", "2"),
    ]
    assert [each.returncode for each in done] == [1] * 6
    assert [len(each.stderr.splitlines()) for each in done] == [1] * 6
    reasons = ["missing.csv", "directory", "missing/", "NoCredentials", "NoCredentials", ": "]
    for reason, each in zip(reasons, done, strict=True):
        assert reason in each.stderr


def test_version_and_help(run: Run) -> None:
    """``--help`` explains the file, gives an example and names a token's life."""
    assert run("--version").stdout.startswith("aioivschat ")
    text = run("onboard", "--help").stdout
    for told in ("session_minutes", "example:", "A token lives one minute", "exit status:"):
        assert told in text
    assert "example:" in run("issue", "--help").stdout
    assert {"onboard", "issue"} < set(run("--help").stdout.split())


@pytest.mark.parametrize("command", [[], ["onboard"], ["issue"], ["plan"], ["rehearse"], ["demo"]])
def test_help_loads_nothing_that_only_commands_need(
    environment: dict[str, str], command: list[str]
) -> None:
    """``--help`` is quick: of the package it imports the options alone, and no library."""
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from aioivschat.cli import main\n"
        f"try: main([*{command}, '--help'])\n"
        "except SystemExit: pass\n"
        "loaded = set(sys.modules) - before\n"
        "found = loaded & {'aiobotocore', 'aiohttp', 'asyncio', 'botocore', 'importlib.metadata'}\n"
        "found |= {name for name in loaded if name.startswith(('aioivschat.', 'rich'))}\n"
        "assert found == {'aioivschat.cli', 'aioivschat.cli.options'}, found"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (0, "") == (done.returncode, done.stderr)
    assert done.stdout.startswith("usage: aioivschat")


def test_a_list_that_cannot_be_read_is_told_as_such(workplace: Path, run: Run) -> None:
    """Whoever looks at the terminal alone learns what is wrong with the file."""
    (workplace / "attendees.csv").write_text("room;user\nx;alice\n")
    done = run("onboard", "attendees.csv", "--output", "tokens.jsonl")
    assert 2 == done.returncode
    assert "attendees.csv, line 1: line: must be a header of room" in done.stderr
    assert "found semicolons between cells" in done.stderr
    assert "1 attendees: 0 tokens, 1 failed in" in done.stderr.splitlines()[-1]
