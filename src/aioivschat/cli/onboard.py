"""``aioivschat onboard``: a token for every attendee of a file."""

from __future__ import annotations

import argparse
import errno
import math
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import BinaryIO

from aioivschat.cli import OK, ROWS_FAILED
from aioivschat.cli.process import (
    check_standard_output,
    complain,
    run_to_end,
    say,
    write_to_standard_output,
)
from aioivschat.cli.progress import Tally, progress
from aioivschat.cli.source import check_target, open_service
from aioivschat.onboarding import (
    BlockingThread,
    Format,
    onboard,
    outcome_as_json,
    private_output,
    read_attendees,
    read_in_thread,
)

_FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_WINDOW = 2.0  # seconds of the quota under way at once
_TOKEN_LIFE = 60.0


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_target(options)
    if options.force and not options.output:
        options.parser.error("--force needs --output")
    # Both are opened before anything is asked for: a typing error costs no token.
    attendees = _open_input(options.attendees)
    with _open_output(options.output, options.force) as write:
        tally = run_to_end(_onboard(options, attendees, write))
    # Only now is the file in its place.
    if not options.quiet:
        say(str(tally))
    if options.output and tally.seconds > _TOKEN_LIFE:
        complain("the first tokens had expired before the file was complete; see --help")
    return ROWS_FAILED if tally.failed else OK


async def _onboard(
    options: argparse.Namespace, attendees: BinaryIO, write: Callable[[str], object]
) -> Tally:
    file_format = options.format or _FORMATS.get(Path(options.attendees).suffix.lower())
    rows = read_attendees(attendees, file_format, room=options.room)
    regular = stat.S_ISREG(os.fstat(attendees.fileno()).st_mode)
    # Writing may block as reading may: whoever consumes the tokens can be slower than the quota.
    writing = BlockingThread()
    async with open_service(options) as tokens:
        outcomes = onboard(
            tokens,
            rows if regular else read_in_thread(rows),
            in_flight=options.in_flight or _window(options.rate, options.timeout),
            timeout=options.timeout,
        )
        tally = Tally(options.rate, time.monotonic())
        with progress(options, tally) as show:
            async with aclosing(outcomes):
                async for outcome in outcomes:
                    await writing.run(write, outcome_as_json(outcome))
                    tally.add(outcome)
                    show()
    return tally.ended()


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
    if path is None:
        check_standard_output()
        yield write_to_standard_output
        return
    with private_output(path, force=force) as file:
        yield file.write
