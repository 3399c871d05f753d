"""Where a command for many writes its outcomes: standard output, or a file of its owner's only.

A file is complete or absent, unless somebody is to read it while it grows (``--stream``): then it
is there from the start and has whole lines only. With a checkpoint, what was written outlives the
run, and the next one appends to it.
"""

from __future__ import annotations

import errno
import json
import os
import select
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aioivschat.cli.checkpoint import Checkpoint
from aioivschat.cli.process import check_standard_output, write_to_standard_output
from aioivschat.onboarding import (
    Outcome,
    outcome_as_json,
    private_output,
)
from aioivschat.onboarding._private_files import check_output_path, open_private_file

Write = Callable[[Sequence[Outcome]], object]
"""Writes outcomes, a line each; it may block."""

STANDARD_OUTPUT, FILE = "standard output", "a file"
"""Kinds of output."""

_LINE_MOST_BYTES = 1 << 20


@contextmanager
def open_output(
    path: str | None, checkpoint: Checkpoint | None, *, force: bool, stream: bool
) -> Iterator[Write]:
    """Open what outcomes are written to.

    Args:
        path: the file; ``None``: standard output.
        checkpoint: told what was written.
        force: whether a file that is there already is replaced, when the job begins.
        stream: whether the file is to be read while it grows.

    Yields:
        What writes. If the block fails, a file that is neither a stream nor to be resumed is
        removed.

    Raises:
        OSError: it cannot be written, or is not what the checkpoint says.
    """
    if path is None:
        check_standard_output()
        yield _to_standard_output if checkpoint is None else _Told(checkpoint)
    elif stream or checkpoint is not None:
        target = Path(path)
        with _growing(target, checkpoint, force=force, stream=stream) as file:
            yield file.write
    else:
        with private_output(path, force=force) as whole:
            yield lambda outcomes: whole.write(_text(outcomes))


def _text(outcomes: Sequence[Outcome]) -> str:
    return "".join(map(outcome_as_json, outcomes))


def _to_standard_output(outcomes: Sequence[Outcome]) -> None:
    write_to_standard_output(_text(outcomes))


class _Told:
    """Standard output, with a checkpoint that is told after every few lines."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __call__(self, outcomes: Sequence[Outcome]) -> None:
        for few in _in_groups(outcomes):
            write_to_standard_output(_text(few))
            self._checkpoint.wrote(few)
            self._checkpoint.save(sync=self._checkpoint.is_due())


def _in_groups(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    """Make groups of lines that a pipe takes whole, or not at all from somebody who is killed."""
    group: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        length = len(outcome_as_json(outcome))
        if group and size + length > select.PIPE_BUF:
            yield group
            group, size = [], 0
        group.append(outcome)
        size += length
    if group:
        yield group


class _GrowingFile:
    """A file that is appended to, and has whole lines at its end.

    Args:
        descriptor: the file's.
        end: its length.
        checkpoint: told what was written.
    """

    def __init__(self, descriptor: int, end: int, checkpoint: Checkpoint | None) -> None:
        self._descriptor = descriptor
        self._end = end
        self._checkpoint = checkpoint
        # An abandoned write is waited for; one that had not begun is not made any more.
        self._lock = threading.Lock()
        self._open = True

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Append outcomes."""
        rest = memoryview(_text(outcomes).encode())
        with self._lock:
            if not self._open:
                return
            end = self._end + len(rest)
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            self._end = end
            if self._checkpoint is not None:
                self._checkpoint.wrote(outcomes)
                if self._checkpoint.is_due():
                    self._sync()

    def close(self) -> None:
        """Put all on the disk, without what a full one cut off."""
        with self._lock:
            self._open = False
            try:
                os.ftruncate(self._descriptor, self._end)
                self._sync()
            finally:
                os.close(self._descriptor)

    def _sync(self) -> None:
        # In this order: the checkpoint never says of a line what is not so after a power cut.
        os.fsync(self._descriptor)
        if self._checkpoint is not None:
            self._checkpoint.save(output=self._end, sync=True)


@contextmanager
def _growing(
    target: Path, checkpoint: Checkpoint | None, *, force: bool, stream: bool
) -> Iterator[_GrowingFile]:
    place = target if stream else target.with_name(f".{target.name}.part")
    if checkpoint is not None and checkpoint.has_begun:
        if not os.path.lexists(place) and target.is_file():
            place = target  # the last run had moved it there
        elif place != target:
            check_output_path(target, force=force)
        descriptor = open_private_file(place, os.O_RDWR | os.O_APPEND)
        end = _recovered(descriptor, place, checkpoint)
    else:
        for each in {target, place}:
            # An empty one is that of a run that ended before it began.
            own = checkpoint is not None and each.is_file() and each.stat().st_size == 0
            check_output_path(each, force=force or own)
        place.unlink(missing_ok=True)
        descriptor = open_private_file(place, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL)
        end = 0
    file = _GrowingFile(descriptor, end, checkpoint)
    try:
        yield file
    finally:
        file.close()
    if place != target:
        check_output_path(target, force=force)
        place.replace(target)


def _recovered(descriptor: int, place: Path, checkpoint: Checkpoint) -> int:
    """Tell the checkpoint what it does not know of yet, cut off a torn line, return the end."""
    end = checkpoint.output
    with os.fdopen(os.dup(descriptor), "rb") as file:
        file.seek(max(end - 1, 0))
        if end and file.read(1) != b"\n":
            raise _foreign(place)
        while (line := file.readline(_LINE_MOST_BYTES)).endswith(b"\n"):
            number, failed = _of_line(line, place)
            if not checkpoint.was_begun(number):
                break  # a power cut took it from the checkpoint
            if not checkpoint.found(number, failed=failed):
                raise _foreign(place)
            end += len(line)
        if len(line) == _LINE_MOST_BYTES:
            raise _foreign(place)
    os.ftruncate(descriptor, end)
    os.fsync(descriptor)
    checkpoint.save(output=end, sync=True)
    return end


def _of_line(line: bytes, place: Path) -> tuple[int, bool]:
    """Return whose a line is, and whether it has no token."""
    try:
        members = json.loads(line)
        return int(members["line"]), "token" not in members
    except (ValueError, KeyError, TypeError):
        pass
    # Not in the handler: the error would carry the line along.
    raise _foreign(place)


def _foreign(place: Path) -> OSError:
    return OSError(errno.EINVAL, "is not what the checkpoint says was written", str(place))
