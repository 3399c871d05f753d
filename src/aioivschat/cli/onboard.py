"""``aioivschat onboard``: a token for every attendee of a file."""

from __future__ import annotations

import argparse
import asyncio
import errno
import io
import math
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, aclosing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, cast

from aioivschat._models import TOKEN_LIFE_SECONDS, RoomArn, TokenRequest
from aioivschat._service.cache import CachePolicy
from aioivschat.cli import OK, ROWS_FAILED, USED_WRONGLY
from aioivschat.cli.checkpoint import Checkpoint, Fingerprint, InputChanged, concerns_more
from aioivschat.cli.onboard_output import FILE, STANDARD_OUTPUT, Write, open_output
from aioivschat.cli.process import WaitingInput, run_to_end, say, say_failure
from aioivschat.cli.progress import show_progress
from aioivschat.cli.tally import Tally
from aioivschat.cli.token_source import check_token_source, open_service
from aioivschat.onboarding import (
    Attendee,
    BlockingThread,
    Format,
    Outcome,
    onboard_in_batches,
    read_attendees,
    read_in_thread,
)

_FORMAT_OF_SUFFIX: dict[str, Format] = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SPREADSHEET_SUFFIXES = (".csv", ".tsv")
"""A spreadsheet that opens such a file splits JSON lines at commas, and may run a cell."""
_IN_FLIGHT_SECONDS = 2.0  # of the quota
_MAX_IN_FLIGHT = 2000  # one process keeps no more than that busy
_ROWS_PER_BEGUN = 25
"""Attendees for each ``begun`` of a checkpoint: that many are read before the first token is asked
for, and the entries of a million attendees take a few megabytes."""
_SECONDS_TO_CONNECT = CachePolicy().min_remaining
_MAX_JOB_SECONDS = TOKEN_LIFE_SECONDS - _SECONDS_TO_CONNECT
"""From the first token of a job to the last, if all tokens are used after the last has come."""
_WRITE_INTERVAL_SECONDS = 0.01
"""Outcomes that come meanwhile are written together, for a fraction of the cost."""


def run(options: argparse.Namespace) -> int:
    """Run the command, and return its exit status."""
    check_token_source(options)
    if options.force and not options.output:
        options.parser.error("--force needs --output")
    if options.output and Path(options.output).suffix.lower() in _SPREADSHEET_SUFFIXES:
        options.parser.error("--output: JSON lines are written, not CSV")
    others = {os.path.realpath(path) for path in (options.attendees, options.output) if path}
    if options.resume and os.path.realpath(options.resume) in others:
        options.parser.error("--resume needs a file of its own")
    try:
        with ExitStack() as stack:
            tally = _run_job(options, stack)
    except JobTooLong as error:
        return say_failure(str(error), USED_WRONGLY)
    except InputChanged:
        changed = f"{options.attendees}: is not what it was when {options.resume} was written"
        return say_failure(f"{changed}; a new job needs a new checkpoint", USED_WRONGLY)
    # The end of the stack moved the output file to its name: now the job is done.
    if tally.unread:
        say_failure(f"{options.attendees}, {tally.unread}")
    if not options.quiet:
        say(str(tally))
    if tally.undone:
        again = "the same command tries them again"
        say_failure(f"{tally.undone:,} of them are not done ({tally.refusal}); {again}")
    written = tally.tokens > tally.tokens_before
    job_seconds = time.time() - tally.job_started
    if written and options.output and not options.stream and job_seconds > TOKEN_LIFE_SECONDS:
        say_failure("the first tokens had expired before the file was complete; see --help")
    return ROWS_FAILED if tally.failed else OK


def _run_job(options: argparse.Namespace, stack: ExitStack) -> Tally:
    # All files are opened before the first request: a wrong path costs no token.
    attendees = _open_input(options.attendees)
    file_format = options.format or _FORMAT_OF_SUFFIX.get(Path(options.attendees).suffix.lower())
    is_regular = stat.S_ISREG(os.fstat(attendees.fileno()).st_mode)
    if is_regular and not options.stream:
        _check_job_length(options, attendees, file_format)
    checkpoint = None
    if options.resume:
        kind = FILE if options.output else STANDARD_OUTPUT
        checkpoint = stack.enter_context(Checkpoint(options.resume, kind))
    write = stack.enter_context(
        open_output(options.output, checkpoint, force=options.force, stream=options.stream)
    )
    tally = Tally(options.rate)
    if checkpoint is None:
        rows = read_attendees(attendees, file_format, room=options.room)
    else:
        tally.resume(checkpoint)
        read = Fingerprint(attendees, file_format, options.room)
        rows = read_attendees(cast("BinaryIO", read), file_format, room=options.room)
        rows = checkpoint.leave_out_done(rows, read, ahead=_ROWS_PER_BEGUN if is_regular else 1)
        write = partial(_write_done, checkpoint, write)
        if checkpoint.has_begun and not options.quiet:
            say(f"aioivschat: {tally.total:,} attendees were done before")
    if is_regular:
        # Finding the first row that is not done may read much of the file: before the loop runs.
        rows = chain(filter(None, [next(rows, None)]), rows)
    elif not options.stream:
        rows = limit_job_length(options, rows)
    source = rows if is_regular else read_in_thread(rows)
    run_to_end(_issue_and_write(options, source, write, tally))
    if checkpoint is not None:
        tally.note_minted_again(checkpoint.again)
        tally.note_undone(checkpoint.refused, checkpoint.refusal)
    return tally


def _write_done(checkpoint: Checkpoint, write: Write, outcomes: Sequence[Outcome]) -> None:
    """Write outcomes, but leave the attendees undone who were refused for no reason of theirs."""
    write([each for each in outcomes if not concerns_more(each)])
    checkpoint.note_refused([each for each in outcomes if concerns_more(each)])


async def _issue_and_write(
    options: argparse.Namespace,
    rows: Iterator[Attendee] | AsyncIterator[Attendee],
    write: Write,
    tally: Tally,
) -> None:
    # In a thread: writing blocks while the consumer of the tokens is slower than the quota.
    writing = BlockingThread()
    async with open_service(options) as tokens:
        batches = onboard_in_batches(
            tokens,
            rows,
            in_flight=options.in_flight or _default_in_flight(options.rate, options.timeout),
            timeout=options.timeout,
        )
        tally.begin()
        with _show_tally(options, tally) as show:
            async with aclosing(batches):
                async for batch in batches:
                    await writing.run(write, batch)
                    tally.add(batch)
                    show()
                    await asyncio.sleep(_WRITE_INTERVAL_SECONDS)
    tally.end()


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


def _default_in_flight(rate: float, timeout: float | None) -> int:
    # With a timeout, no call may wait so long for its turn that it fails.
    seconds = _IN_FLIGHT_SECONDS if timeout is None else min(_IN_FLIGHT_SECONDS, timeout / 2)
    return min(math.ceil(rate * seconds), _MAX_IN_FLIGHT)


class JobTooLong(Exception):
    """The first tokens would expire before the last one comes."""

    def __init__(self, attendees: str, options: argparse.Namespace, seconds: float) -> None:
        most = math.floor(_MAX_JOB_SECONDS * options.rate) + (options.burst or 0)
        super().__init__(
            f"{attendees} attendees at {options.rate:g} a second take {seconds:,.0f} s, but a "
            f"token lives {TOKEN_LIFE_SECONDS:g} s: at most {most:,} can be used together, with "
            f"{_SECONDS_TO_CONNECT:g} s left to connect. Use --stream, with a consumer that takes "
            "each token as it comes"
        )


def _job_seconds(options: argparse.Namespace, count: int) -> float:
    return float(max(0, count - (options.burst or 0)) / options.rate)


def _check_job_length(
    options: argparse.Namespace, attendees: BinaryIO, file_format: Format | None
) -> None:
    """Raise JobTooLong if the tokens for a file's attendees cannot all be used together."""
    start = attendees.tell()
    lines = 1 + _count_line_breaks(attendees)
    attendees.seek(start)
    if _job_seconds(options, lines) <= _MAX_JOB_SECONDS:
        return
    # There may be too many: count by quota, and only the rows that get a token.
    counts: Counter[tuple[str, str]] = Counter()
    for row in read_attendees(attendees, file_format, room=options.room):
        if row.request is not None:
            counts[_quota_key(row.request)] += 1
    attendees.seek(start)
    count = max(counts.values(), default=0)
    if _job_seconds(options, count) > _MAX_JOB_SECONDS:
        raise JobTooLong(f"{count:,}", options, _job_seconds(options, count))


def limit_job_length(
    options: argparse.Namespace,
    rows: Iterator[Attendee],
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[Attendee]:
    """Pass attendees on until there are too many for all their tokens to be used together.

    Rows that come more slowly than the quota allows are passed on without end: their consumer takes
    each token as it comes.
    """
    started = monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        if row.request is not None:
            quota = _quota_key(row.request)
            counts[quota] += 1
            seconds = _job_seconds(options, counts[quota])
            if seconds > _MAX_JOB_SECONDS and monotonic() - started < seconds:
                raise JobTooLong(f"{counts[quota]:,} or more", options, seconds)
        yield row


def _quota_key(request: TokenRequest) -> tuple[str, str]:
    arn = RoomArn.parse(request.room)
    return arn.account, arn.region


def _open_input(path: str) -> BinaryIO:
    # Never closed, and not sys.stdin itself: closing either, as Python does at its end, would wait
    # for the thread that is blocked reading.
    if path != "-":
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    elif sys.stdin is not None:
        descriptor = sys.stdin.fileno()
    else:
        raise OSError(errno.EBADF, "standard input is closed")
    return io.BufferedReader(WaitingInput(descriptor, closefd=False))
