"""``aioivschat onboard``: a token for every attendee of a file."""

from __future__ import annotations

import argparse
import asyncio
import errno
import math
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, aclosing
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from aioivschat._models import TOKEN_LIFE_SECONDS, RoomArn, TokenRequest
from aioivschat._service.cache import CachePolicy
from aioivschat.cli import OK, ROWS_FAILED, USED_WRONGLY
from aioivschat.cli.checkpoint import Checkpoint, Fingerprint, InputChanged
from aioivschat.cli.onboard_output import FILE, STANDARD_OUTPUT, Write, open_output
from aioivschat.cli.process import complain, run_to_end, say
from aioivschat.cli.progress import show_progress
from aioivschat.cli.tally import Tally
from aioivschat.cli.token_source import check_target, open_service
from aioivschat.onboarding import (
    Attendee,
    BlockingThread,
    Format,
    onboard_in_batches,
    read_attendees,
    read_in_thread,
)

_FORMATS: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SPREADSHEETS = (".csv", ".tsv")
"""Whoever opens such a file would have a spreadsheet split the lines at commas, and run cells."""
_WINDOW = 2.0  # seconds of the quota under way at once
_WINDOW_MOST = 2000  # more than one process can keep busy
_AHEAD = 25
"""Attendees for each line of a checkpoint: so few are read before the first of them is asked for,
and a job of a million has a few megabytes of them."""
_TO_CONNECT = CachePolicy().min_remaining
_TOGETHER = TOKEN_LIFE_SECONDS - _TO_CONNECT
"""Seconds from the first token of a job to the last, if all are used at its end."""
_PAUSE = 0.01
"""Seconds between writes: what comes meanwhile is written at once, for a fraction of the cost."""


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_target(options)
    if options.force and not options.output:
        options.parser.error("--force needs --output")
    if options.output and Path(options.output).suffix.lower() in _SPREADSHEETS:
        options.parser.error("--output: JSON lines are written, not CSV")
    others = {os.path.realpath(path) for path in (options.attendees, options.output) if path}
    if options.resume and os.path.realpath(options.resume) in others:
        options.parser.error("--resume needs a file of its own")
    try:
        with ExitStack() as stack:
            tally = _run(options, stack)
    except JobTooLong as error:
        return complain(str(error), USED_WRONGLY)
    except InputChanged:
        changed = f"{options.attendees}: is not what it was when {options.resume} was written"
        return complain(f"{changed}; a new job needs a new checkpoint", USED_WRONGLY)
    # Only now is the file in its place.
    if not options.quiet:
        say(str(tally))
    written = tally.tokens > tally.before
    if written and options.output and not options.stream and tally.since_first > TOKEN_LIFE_SECONDS:
        complain("the first tokens had expired before the file was complete; see --help")
    return ROWS_FAILED if tally.failed else OK


def _run(options: argparse.Namespace, stack: ExitStack) -> Tally:
    # All files are opened before anything is asked for: a typing error costs no token.
    attendees = _open_input(options.attendees)
    file_format = options.format or _FORMATS.get(Path(options.attendees).suffix.lower())
    regular = stat.S_ISREG(os.fstat(attendees.fileno()).st_mode)
    if regular and not options.stream:
        _check_fits(options, attendees, file_format)
    checkpoint = None
    if options.resume:
        kind = FILE if options.output else STANDARD_OUTPUT
        checkpoint = stack.enter_context(Checkpoint(options.resume, kind))
    write = stack.enter_context(
        open_output(options.output, checkpoint, force=options.force, stream=options.stream)
    )
    tally = Tally(options.rate, time.monotonic())
    if checkpoint is None:
        rows = read_attendees(attendees, file_format, room=options.room)
    else:
        tally.resume(checkpoint)
        read = Fingerprint(attendees, file_format, options.room)
        rows = read_attendees(cast("BinaryIO", read), file_format, room=options.room)
        rows = checkpoint.remaining(rows, read, ahead=_AHEAD if regular else 1)
        if checkpoint.has_begun and not options.quiet:
            say(f"aioivschat: {tally.total:,} attendees were done before")
    if regular:
        # Whoever is done is passed over here, where it holds no event loop up.
        rows = chain(filter(None, [next(rows, None)]), rows)
    elif not options.stream:
        rows = while_they_fit(options, rows)
    run_to_end(_onboard(options, rows if regular else read_in_thread(rows), write, tally))
    if checkpoint is not None:
        tally.again = checkpoint.again
    return tally


async def _onboard(
    options: argparse.Namespace,
    rows: Iterator[Attendee] | AsyncIterator[Attendee],
    write: Write,
    tally: Tally,
) -> None:
    # Writing may block as reading may: whoever consumes the tokens can be slower than the quota.
    writing = BlockingThread()
    async with open_service(options) as tokens:
        batches = onboard_in_batches(
            tokens,
            rows,
            in_flight=options.in_flight or _window(options.rate, options.timeout),
            timeout=options.timeout,
        )
        tally.started = time.monotonic()
        with _show_tally(options, tally) as show:
            async with aclosing(batches):
                async for batch in batches:
                    await writing.run(write, batch)
                    tally.add(batch)
                    show()
                    await asyncio.sleep(_PAUSE)
    tally.ended()


def _show_tally(
    options: argparse.Namespace, tally: Tally
) -> AbstractContextManager[Callable[[], None]]:
    total = _count_rows(options.attendees)
    expected = "?" if total is None else f"{total:,}"

    def describe() -> tuple[int, str, str]:
        after = f"{tally.failed:,} failed {tally.pace:.0f}/{tally.rate:g} a second"
        return tally.total, f"{tally.total:,} of {expected}", after

    # On one terminal the bar and the tokens would overwrite each other.
    quiet = options.quiet or (not options.output and sys.stdout.isatty())
    return show_progress(describe, total=total, bar_width=40, quiet=quiet, shows_time_left=True)


def _count_rows(path: str) -> int | None:
    """Return about how many rows a regular file has: one a line, without a CSV's header."""
    if path == "-" or not Path(path).is_file():
        return None
    with Path(path).open("rb") as file:
        return max(_count_line_breaks(file) - (Path(path).suffix == ".csv"), 0)


def _count_line_breaks(file: BinaryIO) -> int:
    return sum(part.count(b"\n") for part in iter(lambda: file.read(1 << 20), b""))


def _window(rate: float, timeout: float | None) -> int:
    """Return how many calls keep the quota busy without waiting themselves into a timeout."""
    seconds = _WINDOW if timeout is None else min(_WINDOW, timeout / 2)
    return min(math.ceil(rate * seconds), _WINDOW_MOST)


class JobTooLong(Exception):
    """The first tokens would be dead when the last one comes."""

    def __init__(self, attendees: str, options: argparse.Namespace, seconds: float) -> None:
        most = math.floor(_TOGETHER * options.rate) + (options.burst or 0)
        super().__init__(
            f"{attendees} attendees at {options.rate:g} a second take {seconds:,.0f} s, but a "
            f"token lives {TOKEN_LIFE_SECONDS:g} s: at most {most:,} can be used together, with "
            f"{_TO_CONNECT:g} s left to connect. Use --stream, with a consumer that takes each "
            "token as it comes"
        )


def _seconds(options: argparse.Namespace, count: int) -> float:
    """Return how long the quota of an account and region takes for so many."""
    return float(max(0, count - (options.burst or 0)) / options.rate)


def _check_fits(
    options: argparse.Namespace, attendees: BinaryIO, file_format: Format | None
) -> None:
    """Refuse a job whose tokens cannot be used together, if it is known how long it is.

    Raises:
        JobTooLong: it takes longer than a token lives.
    """
    start = attendees.tell()
    lines = 1 + _count_line_breaks(attendees)
    attendees.seek(start)
    if _seconds(options, lines) <= _TOGETHER:
        return
    # Now it matters who shares a quota, and which rows are good.
    counts: Counter[tuple[str, str]] = Counter()
    for row in read_attendees(attendees, file_format, room=options.room):
        if row.request is not None:
            counts[_quota_of(row.request)] += 1
    attendees.seek(start)
    count = max(counts.values(), default=0)
    if _seconds(options, count) > _TOGETHER:
        raise JobTooLong(f"{count:,}", options, _seconds(options, count))


def while_they_fit(
    options: argparse.Namespace,
    rows: Iterator[Attendee],
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Attendee]:
    """Refuse to go on when the tokens cannot be used together any more.

    Rows that come more slowly than the quota allows are used as they come, by somebody who waits.

    Args:
        options: with the rate and the burst of the quota.
        rows: the attendees, of whom nobody knows how many there are.
        monotonic: the time in seconds.

    Returns:
        The attendees.

    Raises:
        JobTooLong: there are too many.
    """
    started = monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.request is not None:
            quota = _quota_of(row.request)
            counts[quota] += 1
            seconds = _seconds(options, counts[quota])
            if seconds > _TOGETHER and monotonic() - started < seconds:
                raise JobTooLong(f"{counts[quota]:,} or more", options, seconds)
        yield row


def _quota_of(request: TokenRequest) -> tuple[str, str]:
    arn = RoomArn.parse(request.room)
    return arn.account, arn.region


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
