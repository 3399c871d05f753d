"""Where ``aioivschat onboard`` writes outcomes: standard output, or a file of its owner's only.

Without ``--stream`` the file is complete or absent. With it, a consumer reads the file while it
grows: it is there from the start and grows by whole lines. With a checkpoint, what one run wrote
stays, and the next run appends to it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from aioivschat.cli.checkpoint import Checkpoint
from aioivschat.cli.process import check_standard_output, write_all, write_to_standard_output
from aioivschat.onboarding import Outcome, outcome_as_json, private_output
from aioivschat.onboarding._private_files import (
    check_output_path,
    keep_others_away,
    open_private_file,
)

Write = Callable[[Sequence[Outcome]], object]
"""Writes outcomes, a line each; may block."""

STANDARD_OUTPUT, FILE = "standard output", "a file"
"""Kinds of output, as a checkpoint names them."""

_MAX_LINE_BYTES = 1 << 20
_PIPE_BYTES = getattr(select, "PIPE_BUF", 512)  # what a pipe takes whole or not at all


@contextmanager
def open_output(
    path: str | None, checkpoint: Checkpoint | None, *, force: bool, stream: bool
) -> Iterator[Write]:
    """Open what outcomes are written to: standard output if there is no path.

    A job that begins replaces an existing file only with ``force``. If the block fails, the file is
    removed, unless it is a stream or may be resumed.
    """
    if path is None:
        check_standard_output()
        if checkpoint is None:
            yield lambda outcomes: write_to_standard_output(_as_lines(outcomes))
        else:
            yield partial(_write_and_log, checkpoint)
    elif stream or checkpoint is not None:
        with (
            keep_others_away(Path(path)),
            _open_growing_file(Path(path), checkpoint, force=force, stream=stream) as file,
        ):
            yield file.write
    else:
        with private_output(path, force=force) as whole:
            yield lambda outcomes: whole.write(_as_lines(outcomes))


def _as_lines(outcomes: Sequence[Outcome]) -> str:
    return "".join(map(outcome_as_json, outcomes))


def _write_and_log(checkpoint: Checkpoint, outcomes: Sequence[Outcome]) -> None:
    for few, lines in _group_outcomes(outcomes):
        write_to_standard_output(lines)
        checkpoint.note_written(few)
        checkpoint.save(sync=checkpoint.is_due())


def _group_outcomes(outcomes: Sequence[Outcome]) -> Iterator[tuple[list[Outcome], str]]:
    """Yield few outcomes at a time, with their lines: what an end of the process may cost.

    A pipe takes them whole or not at all.
    """
    group: list[Outcome] = []
    lines = ""
    for outcome in outcomes:
        line = outcome_as_json(outcome)
        if group and len(lines) + len(line) > _PIPE_BYTES:
            yield group, lines
            group, lines = [], ""
        group.append(outcome)
        lines += line
    if group:
        yield group, lines


class _GrowingFile:
    """A file that is appended to, and ends with a whole line once it is closed."""

    def __init__(self, descriptor: int, end: int, checkpoint: Checkpoint | None) -> None:
        self._descriptor = descriptor
        self._end = end
        self._checkpoint = checkpoint
        # close() waits for a write that is under way in another thread; one that comes after it
        # does nothing.
        self._lock = threading.Lock()
        self._open = True

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Append outcomes, a line each."""
        with self._lock:
            if not self._open:
                return
            for few, lines in _group_outcomes(outcomes):
                data = lines.encode()
                write_all(self._descriptor, data)
                self._end += len(data)
                if self._checkpoint is not None:
                    self._checkpoint.note_written(few)
            if self._checkpoint is not None and self._checkpoint.is_due():
                self._sync_to_disk()

    def close(self) -> None:
        """Sync to the disk, without a line that a full disk cut off."""
        with self._lock:
            self._open = False
            try:
                os.ftruncate(self._descriptor, self._end)
                self._sync_to_disk()
            finally:
                os.close(self._descriptor)

    def _sync_to_disk(self) -> None:
        # The file first: after a power cut the checkpoint must not count lines that it has lost.
        os.fsync(self._descriptor)
        if self._checkpoint is not None:
            self._checkpoint.save(output_bytes=self._end, sync=True)


@contextmanager
def _open_growing_file(
    target: Path, checkpoint: Checkpoint | None, *, force: bool, stream: bool
) -> Iterator[_GrowingFile]:
    path = target if stream else target.with_name(f".{target.name}.part")
    if checkpoint is not None and checkpoint.has_begun:
        if not os.path.lexists(path) and target.is_file():
            path = target  # the last run was killed just after it had moved the file there
        elif path != target:
            check_output_path(target, force=force)
        descriptor = open_private_file(path, os.O_RDWR | os.O_APPEND)
        end = _recover_output(descriptor, path, checkpoint)
    else:
        for each in {target, path}:
            # An empty file is left by a run that ended before it asked for a token.
            left = checkpoint is not None and each.is_file() and each.stat().st_size == 0
            check_output_path(each, force=force or left)
        path.unlink(missing_ok=True)
        descriptor = open_private_file(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        end = 0
    file = _GrowingFile(descriptor, end, checkpoint)
    try:
        yield file
    finally:
        file.close()
    if path != target:
        check_output_path(target, force=force)
        path.replace(target)


def _recover_output(descriptor: int, path: Path, checkpoint: Checkpoint) -> int:
    """Log the lines that the checkpoint does not have yet, cut off a torn one; return the end."""
    end = checkpoint.output_bytes
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(max(end - 1, 0))
        if end and file.read(1) != b"\n":
            raise _foreign_output_error(path)
        while (line := file.readline(_MAX_LINE_BYTES)).endswith(b"\n"):
            number, failed = _parse_line(line, path)
            if not checkpoint.is_begun(number):
                break  # a power cut took its entry from the checkpoint
            if not checkpoint.note_found(number, failed=failed):
                raise _foreign_output_error(path)
            end += len(line)
        if len(line) == _MAX_LINE_BYTES:
            raise _foreign_output_error(path)
    os.ftruncate(descriptor, end)
    os.fsync(descriptor)
    checkpoint.save(output_bytes=end, sync=True)
    return end


def _parse_line(line: bytes, path: Path) -> tuple[int, bool]:
    """Return the attendee's line in the input, and whether the outcome has no token."""
    try:
        members = json.loads(line)
        return int(members["line"]), "token" not in members
    except (ValueError, KeyError, TypeError):
        pass
    # Raised outside the handler, as the caught error carries the line with its token.
    raise _foreign_output_error(path)


def _foreign_output_error(path: Path) -> OSError:
    return OSError(errno.EINVAL, "is not what the checkpoint says was written", str(path))
