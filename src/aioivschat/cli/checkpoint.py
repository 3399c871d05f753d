"""What a job has done so far, kept in a file, so that another run can go on after any end.

The file is a log of JSON lines: ``begun`` before tokens are asked for, ``done`` after their lines
were written. It says how far and how many, and nothing of whom: it holds no token, and of the
attendees only a digest. A line that was cut off by the end of a run is dropped by the next.

Exactly once, then, means this. Whoever is done is never asked for again. Whoever was begun and is
not done is asked for again: their token may have been minted, but it was not written; how many
they may be is counted. Of a file it is the file that says who is done, the log only how much of it
is surely on the disk: a line is written and done in one step. Of standard output the log says it,
after every few lines; a kill just between the two lets those few come again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Self

from aioivschat.onboarding import Attendee, Outcome
from aioivschat.onboarding._private_files import open_private_file

_VERSION = 1
_DIGEST_BYTES = 16
_SYNC_SECONDS = 1.0
"""A power cut makes at most so much of a job be done again; a kill nothing."""
_LINES_MOST = 1_000_000_000
"""Nearly two months of the quota. A log that tells of more is damaged, and takes the memory."""
_BYTES_MOST = 2**63


class InputChanged(Exception):
    """The attendees are not those that the checkpoint was made with."""


class Fingerprint:
    """A file whose digest is known up to the line that was read last.

    Args:
        file: the file, opened in binary mode.
        meaning: whatever else decides who its rows are.
    """

    def __init__(self, file: BinaryIO, *meaning: str | None) -> None:
        self._readline = file.readline
        self._digest = hashlib.blake2b(repr(meaning).encode(), digest_size=_DIGEST_BYTES)

    def readline(self, size: int = -1) -> bytes:
        """Read as the file does."""
        line = self._readline(size)
        self._digest.update(line)
        return line

    def __str__(self) -> str:
        return self._digest.hexdigest()


class Checkpoint:
    """The log of a job.

    Args:
        path: where it is; it is made if there is none.
        kind: what the outcomes are written to, which is the same for all runs of a job.

    Attributes:
        started: when the first run began, in seconds since the epoch.
        tokens: attendees who have one.
        failed: attendees who get none.
        again: attendees so far whose token may have been minted twice.
        output: bytes of the output file that are surely on the disk.

    Raises:
        OSError: it cannot be written, is no checkpoint or that of another kind of job, or another
            run is using it.
    """

    def __init__(self, path: str, kind: str) -> None:
        self.started = time.time()
        self.tokens = self.failed = self.again = self.output = 0
        self._begun = 0
        self._input = ""
        self._done = bytearray(1)  # by line: a million are a megabyte
        self._noted: list[int] = []
        self._synced = time.monotonic()
        # The end of a run does not wait for a thread that is blocked writing.
        self._lock = threading.Lock()
        self._open = True
        self._file = open_private_file(Path(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._claim(path)
            is_new = not self._load(path, kind)
            os.fchmod(self._file, 0o600)
            if is_new:
                self._append({"checkpoint": _VERSION, "output": kind, "started": self.started})
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
            os.close(self._file)

    @property
    def has_begun(self) -> bool:
        """Whether a token was asked for."""
        return self._begun > 0

    def remaining(
        self, rows: Iterator[Attendee], fingerprint: Fingerprint, ahead: int
    ) -> Iterator[Attendee]:
        """Leave out who is done, and keep account of who is begun.

        Nobody is begun before all that was done is known to be in the input still, unchanged.

        Args:
            rows: all attendees, read from the file of the fingerprint one by one.
            fingerprint: of what was read.
            ahead: rows to pull for each line of the log; 1 if reading may block.

        Raises:
            InputChanged: the rows are not those of the earlier runs.
        """
        if self._begun:
            yield from self._in_doubt(rows, fingerprint)
        while chunk := list(islice(rows, ahead)):
            self._begun = chunk[-1].line
            self._append({"begun": self._begun, "input": str(fingerprint)})
            yield from chunk

    def _in_doubt(self, rows: Iterator[Attendee], fingerprint: Fingerprint) -> list[Attendee]:
        in_doubt = []
        for row in rows:
            if row.line > self._begun:
                break
            if not self._is_done(row.line):
                in_doubt.append(row)
            if row.line == self._begun:
                if str(fingerprint) != self._input:
                    break
                again = sum(row.request is not None for row in in_doubt)
                self.again += again
                self._append({"again": again})
                return in_doubt
        raise InputChanged

    def wrote(self, outcomes: Sequence[Outcome]) -> None:
        """Note that the lines of outcomes were written."""
        for outcome in outcomes:
            self._note(outcome.attendee.line, failed=outcome.token is None)

    def found(self, line: int, *, failed: bool) -> bool:
        """Note a line that an earlier run wrote; tell whether it can have been one of its."""
        if self._is_done(line):
            return False
        self._note(line, failed=failed)
        return True

    def was_begun(self, line: int) -> bool:
        """Tell whether an attendee may have been begun."""
        return line <= self._begun

    def is_due(self) -> bool:
        """Tell whether it is time to put what was written on the disk."""
        return time.monotonic() - self._synced >= _SYNC_SECONDS

    def save(self, *, output: int = 0, sync: bool = False) -> None:
        """Log what was noted.

        Args:
            output: bytes of the output file that are surely on the disk.
            sync: whether the log is to be on the disk too.
        """
        with self._lock:
            # A thread that comes back after the end has written what the next run writes again.
            if not self._open:
                return
            if self._noted:
                done, self._noted = list(_ranges(sorted(self._noted))), []
                self.output = output
                counts = {"tokens": self.tokens, "failed": self.failed}
                self._append({"done": done, **counts, "output": output})
            if sync:
                os.fsync(self._file)
                self._synced = time.monotonic()

    def _note(self, line: int, *, failed: bool) -> None:
        self._mark(line, line)
        self._noted.append(line)
        if failed:
            self.failed += 1
        else:
            self.tokens += 1

    def _mark(self, first: int, last: int) -> None:
        if last >= len(self._done):
            self._done.extend(bytes(last + 1 - len(self._done)))
        self._done[first : last + 1] = b"\1" * (last + 1 - first)

    def _is_done(self, line: int) -> bool:
        return line < len(self._done) and bool(self._done[line])

    def _claim(self, path: str) -> None:
        """Keep other runs away; whatever ends this one lets the next one in."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "is in use by another run", path) from None

    def _load(self, path: str, kind: str) -> bool:
        """Read the log; tell whether there is one."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                try:
                    # What is cut off may be JSON all the same.
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    self._apply(entry, path, kind, first=not end)
                except (ValueError, KeyError, TypeError, RecursionError):
                    break
                end += len(line)
        if not end and os.fstat(self._file).st_size:
            raise OSError(errno.EINVAL, "is not a checkpoint", path)
        os.ftruncate(self._file, end)
        return end > 0

    def _apply(self, entry: dict[str, Any], path: str, kind: str, *, first: bool) -> None:
        if first:
            started = float(entry["started"])
            if entry["checkpoint"] != _VERSION or not math.isfinite(started):
                raise ValueError
            self.started = started
            if entry["output"] != kind:
                raise OSError(errno.EINVAL, f"is of a job that wrote to {entry['output']}", path)
        elif "begun" in entry:
            self._begun, self._input = _count(entry["begun"]), str(entry["input"])
        elif "again" in entry:
            self.again += _count(entry["again"])
        else:
            tokens, failed = _count(entry["tokens"]), _count(entry["failed"])
            output = _count(entry["output"], _BYTES_MOST)
            # All of it or nothing: what is not taken is cut off.
            done = [(_count(first), _count(last)) for first, last in entry["done"]]
            if not all(0 < first <= last <= self._begun for first, last in done):
                raise ValueError
            for first_line, last_line in done:
                self._mark(first_line, last_line)
            self.tokens, self.failed, self.output = tokens, failed, output

    def _append(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _count(value: object, most: int = _LINES_MOST) -> int:
    if type(value) is int and 0 <= value <= most:
        return value
    raise ValueError


def _ranges(numbers: Iterable[int]) -> Iterator[list[int]]:
    """Return the first and the last of each run of consecutive numbers."""
    first, last = 1, 0
    for number in numbers:
        if number != last + 1:
            if last:
                yield [first, last]
            first = number
        last = number
    if last:
        yield [first, last]
