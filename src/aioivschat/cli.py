"""The command ``aioivschat``: tokens for one user, for a file of attendees, or for a demo.

Exit status: 0 if all went well, 2 if a row failed or the command was used wrongly, 1 for any other
failure, 130 after an interrupt (128 and the signal's number after another signal).
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import math
import os
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from aioivschat.errors import ChatTokenError, InvalidConfiguration, InvalidRequest

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

    from aioivschat._service import AsyncTokenService
    from aioivschat.onboarding import Format, Outcome

# aiobotocore, the emulator and rich are imported where they are used: --help is quick.

T = TypeVar("T")

OK, FAILED, ROWS_FAILED, INTERRUPTED = 0, 1, 2, 130

_QUOTA = 200.0  # requests a second for an account and region; not adjustable
_WINDOW = 2.0  # seconds of the quota under way at once
_DEMO_QUOTA = 10.0  # so small that a few dozen viewers have to wait
_TOKEN_LIFE = 60.0

_ONBOARD = """\
Issue a token for every attendee of a file, as fast as the quota allows, and
print one JSON line for each as it comes:

  {"line": 2, "room": "arn:...", "user": "viewer-0001", "token": "...",
   "tokenExpirationTime": "...", "sessionExpirationTime": "..."}
  {"line": 7, "error": {"code": "InvalidRequest", "message": "..."}}

A token lives one minute and connects once: consume the output as it comes.
A file made by --output appears when the last token is there, so it suits jobs
of less than a minute (fewer than 12,000 attendees at 200 a second).

Without --aws or --endpoint-url the tokens come from a local emulator.
"""

_FILE_HELP = """\
the file of attendees:
  CSV with a header (.csv), or JSON lines with the same keys (.jsonl, .ndjson);
  otherwise a file that begins with { is JSON lines. A row is one line.

    room              the room's ARN; may be left out with --room
    user              the user's id, 1 to 128 characters
    capabilities      SEND_MESSAGE DELETE_MESSAGE DISCONNECT_USER: any of these,
                      separated by spaces (JSON: a list); none: may view
    attributes        a JSON object, text to text, at most 1,024 bytes
    session_minutes   1 to 180; 60 if it is left out

  Rows that cannot be read are reported by line; all others are done.

example:
  printf 'user,capabilities\\nviewer-1,SEND_MESSAGE\\nviewer-2,\\n' |
    aioivschat onboard - --room arn:aws:ivschat:us-east-1:123456789012:room/Lobby

exit status: 0 all have a token; 2 a row failed; 1 another failure; 130 interrupted
"""

_ISSUE_EXAMPLE = """\
example:
  aioivschat issue --room arn:aws:ivschat:us-east-1:123456789012:room/Lobby \\
    --user viewer-1 --capability SEND_MESSAGE --attribute displayName=Viewer
"""

_DEMO = """\
Run a chat room on this machine and open its page: a host and a viewer who
chat, lose their connection and come back, a crowd that wants in, and beside
them what becomes of their tokens. Nothing goes to AWS. Ctrl-C ends it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; ``None``: that of the process.

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except _Terminated as end:
        return 128 + end.signal
    except BrokenPipeError:
        # Whoever read the output has had enough.
        return FAILED
    except (InvalidConfiguration, InvalidRequest) as error:
        return _complain(str(error), ROWS_FAILED)
    except ChatTokenError as error:
        return _complain(f"{type(error).__name__}: {error}")
    except OSError as error:
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return _complain(f"{where}{error.strerror or type(error).__name__}")
    except Exception as error:
        return _complain(_reason(error))
    return status


def _complain(reason: str, status: int = FAILED) -> int:
    # One line, whatever a message holds.
    _say(f"aioivschat: {' '.join(reason.split())}")
    return status


def _say(line: str) -> None:
    # Where there is no standard error, print would put it among the tokens.
    if sys.stderr is not None:
        print(line, file=sys.stderr)


def _reason(error: Exception) -> str:
    from botocore.exceptions import BotoCoreError

    # Of an error that nobody foresaw, the message may repeat the input.
    if isinstance(error, BotoCoreError):
        return f"{type(error).__name__}: {error}"
    return f"unexpected {type(error).__name__}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aioivschat", description="Issue Amazon IVS Chat tokens at the pace AWS allows."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('aioivschat')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_onboard(commands)
    _add_issue(commands)
    _add_demo(commands)
    return parser


def _add_onboard(commands: Any) -> None:
    onboard = commands.add_parser(
        "onboard",
        help="issue a token for every attendee of a file",
        description=_ONBOARD,
        epilog=_FILE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    onboard.set_defaults(run=_run_onboard, parser=onboard)
    add = onboard.add_argument
    add("attendees", metavar="ATTENDEES", help="the file; - for standard input")
    add(
        "--output",
        metavar="FILE",
        help="write there instead of to standard output: readable by you only, and complete or "
        "absent",
    )
    add("--force", action="store_true", help="replace FILE if it exists")
    add("--format", choices=("csv", "jsonl"), help="instead of going by the file's extension")
    add("--room", metavar="ARN", help="the room of rows that name none")
    _add_target(onboard)
    add(
        "--rate",
        type=_above_zero,
        default=_QUOTA,
        metavar="N",
        help="requests a second allowed to an account and region (default: 200)",
    )
    add(
        "--burst",
        type=_whole,
        metavar="N",
        help="size of the quota's bucket, where it is known; the default never sends more than "
        "--rate in any second",
    )
    add(
        "--timeout",
        type=_above_zero,
        metavar="S",
        help="seconds that one attendee's token may take (default: as long as it takes)",
    )
    add(
        "--in-flight",
        type=_whole,
        metavar="N",
        help="requests under way or waiting at once (default: two seconds of --rate)",
    )
    add("--quiet", action="store_true", help="no progress bar and no summary")


def _add_issue(commands: Any) -> None:
    issue = commands.add_parser(
        "issue",
        help="issue one token",
        description="Issue one token and print it as a JSON line. Without --aws or\n"
        "--endpoint-url it comes from a local emulator.",
        epilog=_ISSUE_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    issue.set_defaults(run=_run_issue, parser=issue, rate=_QUOTA, burst=None)
    add = issue.add_argument
    add("--room", required=True, metavar="ARN", help="the room's ARN")
    add("--user", required=True, metavar="ID", help="the user's id, 1 to 128 characters")
    add(
        "--capability",
        action="append",
        default=[],
        metavar="NAME",
        help="SEND_MESSAGE, DELETE_MESSAGE or DISCONNECT_USER; may be repeated",
    )
    add(
        "--attribute",
        action="append",
        default=[],
        type=_pair,
        metavar="KEY=VALUE",
        help="what the room shows about the user; may be repeated",
    )
    add("--session-minutes", type=int, default=60, metavar="N", help="1 to 180 (default: 60)")
    _add_target(issue)
    add(
        "--timeout",
        type=_above_zero,
        default=30.0,
        metavar="S",
        help="seconds that it may take (default: 30)",
    )


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo",
        help="open a page with two people in one chat room",
        description=_DEMO,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.set_defaults(run=_run_demo, parser=demo)
    add = demo.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s; any other lets others in)",
    )
    add(
        "--port", type=_port, default=0, metavar="N", help="port to listen on (default: a free one)"
    )
    add(
        "--rate",
        type=_above_zero,
        default=_DEMO_QUOTA,
        metavar="N",
        help="tokens a second that the emulator allows (default: %(default)g)",
    )
    add("--no-open", action="store_true", help="do not open the page in a browser")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--aws", action="store_true", help="ask AWS, with the credentials that boto3 would use"
    )
    parser.add_argument(
        "--endpoint-url",
        metavar="URL",
        help="ask this endpoint, with the credentials that boto3 would use",
    )
    parser.add_argument("--profile", metavar="NAME", help="profile of the AWS configuration")


def _above_zero(text: str) -> float:
    with suppress(ValueError):
        number = float(text)
        if number > 0 and math.isfinite(number):
            return number
    raise argparse.ArgumentTypeError("must be a number above 0")


def _whole(text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if number >= 1:
            return number
    raise argparse.ArgumentTypeError("must be a whole number, at least 1")


def _port(text: str) -> int:
    with suppress(ValueError):
        number = int(text)
        if 0 <= number <= 65535:
            return number
    raise argparse.ArgumentTypeError("must be a port, 0 to 65535")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError("must be KEY=VALUE")
    return key, value


# Where tokens come from.


@asynccontextmanager
async def _service(options: argparse.Namespace) -> AsyncIterator[AsyncTokenService]:
    """Open the service: on AWS, on an endpoint, or on an emulator of our own."""
    from aiobotocore.session import AioSession

    from aioivschat._limiter import Quota
    from aioivschat._service import AsyncTokenService

    with ExitStack() as stack:
        if options.aws or options.endpoint_url:
            session, url = AioSession(profile=options.profile), options.endpoint_url
        else:
            session = _session_without_configuration()
            url = stack.enter_context(_emulator(options.rate, options.burst))
        quota = Quota(rate=options.rate, burst=options.burst)
        async with AsyncTokenService(session=session, endpoint_url=url, quota=quota) as tokens:
            yield tokens


def _session_without_configuration() -> AioSession:
    """Make a session for the emulator: nothing of the user's is read or sent."""
    from aiobotocore.session import AioSession

    nothing = (None, None, None, None)
    session = AioSession({"profile": nothing, "config_file": nothing, "credentials_file": nothing})
    session.set_credentials("testing", "testing")
    return session


@contextmanager
def _emulator(rate: float, burst: int | None) -> Iterator[str]:
    from aioivschat.emulator import Emulator, QuotaShape, ThreadedEmulatorServer

    shape = QuotaShape("bucket", rate, burst or max(1.0, rate))
    # A thread of its own: the emulator answers while the service's loop is busy, as AWS would.
    with ThreadedEmulatorServer(Emulator(quota=shape)) as server:
        _say(
            "aioivschat: these tokens are from the local emulator and do not connect to AWS "
            "(see --aws)"
        )
        yield server.url


class _Terminated(Exception):
    def __init__(self, number: int) -> None:
        self.signal = number


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, or to a signal: then everything is put away as after an interrupt."""
    received: list[int] = []

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            # Under nohup it is to be ignored.
            if signal.getsignal(number) == signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise _Terminated(received[0]) from None
        raise


def _check_target(options: argparse.Namespace) -> None:
    if options.profile and not (options.aws or options.endpoint_url):
        options.parser.error("--profile needs --aws or --endpoint-url")
    if options.aws and options.endpoint_url:
        options.parser.error("--aws and --endpoint-url exclude each other")


# aioivschat issue


def _run_issue(options: argparse.Namespace) -> int:
    _check_target(options)
    _check_standard_output()
    return _run(_issue(options))


async def _issue(options: argparse.Namespace) -> int:
    from aioivschat._models import TokenRequest
    from aioivschat.onboarding import token_members

    request = TokenRequest(
        options.room,
        options.user,
        options.capability,
        dict(options.attribute),
        options.session_minutes,
    )
    async with _service(options) as tokens:
        token = await tokens.issue(request, fresh=True, timeout=options.timeout)
    _write_to_standard_output(json.dumps(token_members(request, token)) + "\n")
    return OK


# aioivschat demo


def _run_demo(options: argparse.Namespace) -> int:
    from aioivschat import _demo

    def ready(url: str) -> None:
        _say(f"aioivschat: the demo is at {url} (Ctrl-C ends it)")
        # A program that started it reads its standard output, as it does of the other commands.
        if sys.stdout is not None and not sys.stdout.isatty():
            _write_to_standard_output(json.dumps({"url": url}) + "\n")
        if not options.no_open and sys.stderr is not None and sys.stderr.isatty():
            _open_in_browser(url)

    session = _session_without_configuration()
    _run(_demo.run(session, host=options.host, port=options.port, rate=options.rate, ready=ready))
    return OK


def _open_in_browser(url: str) -> None:
    """Open a page, unless the only browser is one that would take over the terminal."""
    import webbrowser
    from threading import Thread

    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return
    # Some browsers are waited for until they end.
    Thread(target=webbrowser.open, args=[url], daemon=True).start()


# aioivschat onboard


def _run_onboard(options: argparse.Namespace) -> int:
    _check_target(options)
    if options.force and not options.output:
        options.parser.error("--force needs --output")
    # Both are opened before anything is asked for: a typing error costs no token.
    attendees = _open_input(options.attendees)
    with _open_output(options.output, options.force) as write:
        tally = _run(_onboard(options, attendees, write))
    # Only now is the file in its place.
    if not options.quiet:
        _say(str(tally))
    if options.output and tally.seconds > _TOKEN_LIFE:
        _complain("the first tokens had expired before the file was complete; see --help")
    return ROWS_FAILED if tally.failed else OK


@dataclass(slots=True)
class _Tally:
    """What has come so far."""

    rate: float
    started: float
    tokens: int = 0
    failed: int = 0
    end: float | None = None

    @property
    def total(self) -> int:
        return self.tokens + self.failed

    @property
    def seconds(self) -> float:
        return (self.end or time.monotonic()) - self.started

    @property
    def pace(self) -> float:
        """Tokens a second."""
        return self.tokens / max(self.seconds, 0.001)

    def add(self, outcome: Outcome) -> None:
        if outcome.token is None:
            self.failed += 1
        else:
            self.tokens += 1

    def ended(self) -> _Tally:
        """Stop the time."""
        self.end = time.monotonic()
        return self

    def __str__(self) -> str:
        return (
            f"{self.total:,} attendees: {self.tokens:,} tokens, {self.failed:,} failed in "
            f"{self.seconds:.1f} s ({self.pace:.0f} a second of {self.rate:g})"
        )


async def _onboard(
    options: argparse.Namespace, attendees: BinaryIO, write: Callable[[str], object]
) -> _Tally:
    from aioivschat.onboarding import (
        BlockingThread,
        onboard,
        outcome_as_json,
        read_attendees,
        read_in_thread,
    )

    file_format = options.format or _FORMATS.get(Path(options.attendees).suffix.lower())
    rows = read_attendees(attendees, file_format, room=options.room)
    regular = stat.S_ISREG(os.fstat(attendees.fileno()).st_mode)
    # Writing may block as reading may: whoever consumes the tokens can be slower than the quota.
    writing = BlockingThread()
    async with _service(options) as tokens:
        outcomes = onboard(
            tokens,
            rows if regular else read_in_thread(rows),
            in_flight=options.in_flight or _window(options.rate, options.timeout),
            timeout=options.timeout,
        )
        tally = _Tally(options.rate, time.monotonic())
        with _progress(options, tally) as show:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    await writing.run(write, outcome_as_json(outcome))
                    tally.add(outcome)
                    show()
    return tally.ended()


_FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


def _window(rate: float, timeout: float | None) -> int:
    """Return how many calls keep the quota busy without waiting themselves into a timeout."""
    seconds = _WINDOW if timeout is None else min(_WINDOW, timeout / 2)
    return math.ceil(rate * seconds)


def _open_input(path: str) -> BinaryIO:
    """Open what is read once, to the end of the process.

    It is a file of our own also for standard input, and never closed: with ``sys.stdin``, or on
    closing, the end of the process would wait for the thread that is blocked reading.
    """
    if path != "-":
        descriptor = os.open(path, os.O_RDONLY)
    elif sys.stdin is not None:
        descriptor = sys.stdin.fileno()
    else:
        raise OSError(errno.EBADF, "standard input is closed")
    return os.fdopen(descriptor, "rb", closefd=False)


@contextmanager
def _open_output(path: str | None, force: bool) -> Iterator[Callable[[str], object]]:
    from aioivschat.onboarding import private_output

    if path is None:
        _check_standard_output()
        yield _write_to_standard_output
        return
    with private_output(path, force=force) as file:
        yield file.write


def _check_standard_output() -> None:
    if sys.stdout is None:
        raise BrokenPipeError


def _write_to_standard_output(line: str) -> None:
    """Write past Python's buffer: a line is out at once, and nothing is left to flush."""
    rest = line.encode()
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


# The progress bar.


@contextmanager
def _progress(options: argparse.Namespace, tally: _Tally) -> Iterator[Callable[[], None]]:
    """Draw a bar on standard error, if that is a terminal and rich is there."""
    # On one terminal the bar and the tokens would overwrite each other.
    tokens_shown = not options.output and sys.stdout.isatty()
    if options.quiet or sys.stderr is None or not sys.stderr.isatty() or tokens_shown:
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda: None
        return
    bar = Progress(
        TextColumn("{task.completed:,} of {task.fields[expected]}"),
        BarColumn(),
        TextColumn("{task.fields[failed]:,} failed"),
        TextColumn(f"{{task.fields[pace]:.0f}}/{tally.rate:g} a second"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
    )
    total = _count_rows(options.attendees)
    expected = "?" if total is None else f"{total:,}"
    task = bar.add_task("", total=total, expected=expected, failed=0, pace=0.0)
    with bar:
        yield lambda: bar.update(task, completed=tally.total, failed=tally.failed, pace=tally.pace)


def _count_rows(path: str) -> int | None:
    """Count the lines of a regular file, about as many as it has rows."""
    if path == "-" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        lines = sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))
    return max(lines - (Path(path).suffix == ".csv"), 0)


if __name__ == "__main__":
    sys.exit(main())
