"""What a job has done so far, kept in a file, so that another run can resume it after any end.

The file is a log of JSON lines: ``begun`` before tokens are asked for, ``done`` after their lines
were written. It holds numbers of lines and counts, no token, and of the attendees only a digest. An
entry that the end of a run cut off is dropped by the next run.

Exactly once means this. An attendee who is done is never asked for again. One who was begun and is
not done is asked for again: the token may have been minted, but was not written; how many these may
be is counted. One who was refused because their room or the account was stays undone as well, but
has no token. An output file says itself who is done, as a line in it is written and done in one
step; the log says how much of the file is surely on the disk. Of standard output the log says who
is done, after every few lines: a kill between the two writes those few lines again.
"""

from __future__ import annotations

import errno
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
from aioivschat.onboarding._private_files import lock_file, open_private_file

_VERSION = 1
_DIGEST_BYTES = 16
_SYNC_SECONDS = 1.0
"""After a power cut at most this much of a job is done again; after a kill nothing is."""
_MAX_LINES = 1_000_000_000
"""Nearly two months of the quota; a log that names more is damaged, and would fill the memory."""
_MAX_FILE_BYTES = 2**63
_DONE, _REFUSED = b"\1", b"\2"  # marks of a line


class InputChanged(Exception):
    """The attendees are not those that the checkpoint was made with."""


class Fingerprint:
    """A file to read by lines, with a digest of what was read so far.

    ``meaning`` is what else decides who the attendees are: the file's format, the default room.
    """

    def __init__(self, file: BinaryIO, *meaning: str | None) -> None:
        self._readline = file.readline
        self._digest = hashlib.blake2b(repr(meaning).encode(), digest_size=_DIGEST_BYTES)

    def readline(self, size: int = -1) -> bytes:
        """Read a line, as the file does."""
        line = self._readline(size)
        self._digest.update(line)
        return line

    def __str__(self) -> str:
        return self._digest.hexdigest()


class Checkpoint:
    """The log of a job, made if there is none.

    Opening it fails (OSError) if it cannot be written, is no checkpoint, is of another ``kind`` of
    output, or is in use by another run.
    """

    def __init__(self, path: str, kind: str) -> None:
        self.job_started = time.time()  # when the first run began
        self.tokens = self.failed = 0  # attendees who have a token, and who get none
        self.again = 0  # attendees whose token may have been minted twice
        self.output_bytes = 0  # of the output file, surely on the disk
        self.refused = 0  # attendees who stay undone, in this run
        self.refusal = ""  # the last of them was given
        self._last_begun = 0
        self._input_digest = ""
        self._done = bytearray(1)  # for each line a byte of these: a megabyte for a million
        self._unsaved_lines: list[int] = []
        self._synced_at = time.monotonic()
        # A thread that is blocked writing may call save() after the run has ended.
        self._lock = threading.Lock()
        self._open = True
        self._file = open_private_file(Path(path), os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            lock_file(self._file, path)
            is_new = not self._read_log(path, kind)
            if hasattr(os, "fchmod"):  # not on Windows
                os.fchmod(self._file, 0o600)
            if is_new:
                self._append_entry(
                    {"checkpoint": _VERSION, "output": kind, "started": self.job_started}
                )
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
        """Whether an earlier run asked for tokens, or this one has."""
        return self._last_begun > 0

    def leave_out_done(
        self, rows: Iterator[Attendee], fingerprint: Fingerprint, ahead: int
    ) -> Iterator[Attendee]:
        """Leave out the attendees who are done, and log the others as begun.

        If the input differs from what earlier runs began, InputChanged is raised before anybody
        else is begun. An entry of the log covers ``ahead`` rows: 1 if reading may block.
        """
        if self._last_begun:
            yield from self._read_rows_in_doubt(rows, fingerprint)
        while chunk := list(islice(rows, ahead)):
            self._last_begun = chunk[-1].line
            self._append_entry({"begun": self._last_begun, "input": str(fingerprint)})
            yield from chunk

    def _read_rows_in_doubt(
        self, rows: Iterator[Attendee], fingerprint: Fingerprint
    ) -> list[Attendee]:
        in_doubt = []
        for row in rows:
            if row.line > self._last_begun:
                break
            if not self._is_done(row.line):
                in_doubt.append(row)
            if row.line == self._last_begun:
                if str(fingerprint) != self._input_digest:
                    break
                again = sum(
                    row.request is not None and not self._is_marked(row.line, _REFUSED)
                    for row in in_doubt
                )
                self._append_entry({"again": again})
                self._note_again(again)
                return in_doubt
        raise InputChanged

    def note_written(self, outcomes: Sequence[Outcome]) -> None:
        """Note outcomes as written; :meth:`save` logs them."""
        for outcome in outcomes:
            self._note_line(outcome.attendee.line, failed=outcome.token is None)

    def note_refused(self, outcomes: Sequence[Outcome]) -> None:
        """Log outcomes whose attendees stay undone, and have no token."""
        for outcome in outcomes:
            self.refused += 1
            self.refusal = f"{type(outcome.error).__name__}: {outcome.error}"
        lines = list(_group_ranges(sorted(outcome.attendee.line for outcome in outcomes)))
        with self._lock:
            if lines and self._open:
                self._mark_lines(lines, _REFUSED)
                self._append_entry({"refused": lines})

    def note_found(self, line: int, *, failed: bool) -> bool:
        """Note an outcome found in the output file; False if its line was done already."""
        if self._is_done(line):
            return False
        self._note_line(line, failed=failed)
        return True

    def is_begun(self, line: int) -> bool:
        """Tell whether the attendee of a line may have been begun."""
        return line <= self._last_begun

    def is_due(self) -> bool:
        """Tell whether the log and the output are to be synced to the disk."""
        return time.monotonic() - self._synced_at >= _SYNC_SECONDS

    def save(self, *, output_bytes: int = 0, sync: bool = False) -> None:
        """Log the outcomes noted since the last call, and sync the log to the disk if asked to."""
        with self._lock:
            # A thread that was blocked writing returns here after the run has ended: the next run
            # may be using the log already, and writes those lines again.
            if not self._open:
                return
            if self._unsaved_lines:
                done, self._unsaved_lines = list(_group_ranges(sorted(self._unsaved_lines))), []
                self.output_bytes = output_bytes
                counts = {"tokens": self.tokens, "failed": self.failed}
                self._append_entry({"done": done, **counts, "output": output_bytes})
            if sync:
                os.fsync(self._file)
                self._synced_at = time.monotonic()

    def _note_line(self, line: int, *, failed: bool) -> None:
        self._mark_lines([[line, line]], _DONE)
        self._unsaved_lines.append(line)
        if failed:
            self.failed += 1
        else:
            self.tokens += 1

    def _note_again(self, again: int) -> None:
        self.again += again
        self._done = self._done.replace(_REFUSED, b"\0")  # they are begun once more

    def _mark_lines(self, ranges: Iterable[Sequence[int]], mark: bytes) -> None:
        for first, last in ranges:
            if last >= len(self._done):
                self._done.extend(bytes(last + 1 - len(self._done)))
            self._done[first : last + 1] = mark * (last + 1 - first)

    def _is_marked(self, line: int, mark: bytes) -> bool:
        return self._done[line : line + 1] == mark

    def _is_done(self, line: int) -> bool:
        return self._is_marked(line, _DONE)

    def _read_log(self, path: str, kind: str) -> bool:
        """Read the log, and cut off what is torn; False if the file is empty."""
        end = 0
        with os.fdopen(os.dup(self._file), "rb") as file:
            for line in file:
                try:
                    # Without its line break an entry was cut off, even if it is valid JSON.
                    entry = json.loads(line) if line.endswith(b"\n") else {}
                    self._apply_entry(entry, path, kind, first=not end)
                except (ValueError, KeyError, TypeError, RecursionError):
                    break
                end += len(line)
        if not end and os.fstat(self._file).st_size:
            raise OSError(errno.EINVAL, "is not a checkpoint", path)
        os.ftruncate(self._file, end)
        return end > 0

    def _apply_entry(self, entry: dict[str, Any], path: str, kind: str, *, first: bool) -> None:
        if first:
            job_started = float(entry["started"])
            if entry["checkpoint"] != _VERSION or not math.isfinite(job_started):
                raise ValueError
            self.job_started = job_started
            if entry["output"] != kind:
                raise OSError(errno.EINVAL, f"is of a job that wrote to {entry['output']}", path)
        elif "begun" in entry:
            self._last_begun, self._input_digest = _check_count(entry["begun"]), str(entry["input"])
        elif "again" in entry:
            self._note_again(_check_count(entry["again"]))
        elif "refused" in entry:
            self._mark_lines(self._check_ranges(entry["refused"]), _REFUSED)
        else:
            tokens, failed = _check_count(entry["tokens"]), _check_count(entry["failed"])
            output_bytes = _check_count(entry["output"], _MAX_FILE_BYTES)
            # Checked before anything is set: an entry that raises is cut off the log.
            self._mark_lines(self._check_ranges(entry["done"]), _DONE)
            self.tokens, self.failed, self.output_bytes = tokens, failed, output_bytes

    def _check_ranges(self, ranges: Any) -> list[tuple[int, int]]:
        checked = [(_check_count(first), _check_count(last)) for first, last in ranges]
        if not all(0 < first <= last <= self._last_begun for first, last in checked):
            raise ValueError
        return checked

    def _append_entry(self, entry: dict[str, object]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        if os.write(self._file, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def concerns_more(outcome: Outcome) -> bool:
    """Tell whether an attendee's error is of the room, the account or the service."""
    return outcome.error is not None and outcome.error.scope not in ("request", "user")


def _check_count(value: object, most: int = _MAX_LINES) -> int:
    if type(value) is int and 0 <= value <= most:
        return value
    raise ValueError


def _group_ranges(numbers: Iterable[int]) -> Iterator[list[int]]:
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
