"""Files for secrets: their owner's only, and never opened through a symbolic link."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

# O_NONBLOCK: opening a pipe that nobody reads would block. O_BINARY is Windows' own, where the
# others are missing.
_OPENING_FLAGS = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))

_LOCKED_BYTE = 1 << 30
"""Windows locks bytes, and nobody may read them: one behind all that is written."""


@contextmanager
def private_output(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[TextIO]:
    """Open a file for secrets that is complete or absent, and readable by its owner only.

    A temporary file beside ``path`` is written and renamed at the end of the block; if the block or
    the disk fails, it is removed.

    Args:
        path: the file; never written through a symbolic link.
        force: whether an existing file is replaced.

    Raises:
        OSError: ``path`` cannot be written, exists already, or is not a regular file.
    """
    target = Path(path)
    with keep_others_away(target):
        check_output_path(target, force=force)
        part = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
        descriptor = open_private_file(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
                yield file
                file.flush()
                # A full disk may be reported only here.
                os.fsync(descriptor)
            check_output_path(target, force=force)
            part.replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                part.unlink()
            raise


@contextmanager
def keep_others_away(target: Path) -> Iterator[None]:
    """Let no other run write to the same output: a file beside it is locked meanwhile.

    Raises:
        OSError: another run is writing there, or none can.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        try:
            descriptor = open_private_file(path, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            error.filename = str(target)
            raise
        try:
            lock_file(descriptor, target)
            # Whoever had it may have removed it since it was opened: another run makes a new one.
            if _is_at(path, descriptor):
                try:
                    yield
                    return
                finally:
                    with suppress(PermissionError):  # of Windows, as it is still open
                        path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def lock_file(descriptor: int, path: str | os.PathLike[str]) -> None:
    """Lock an open file until it is closed, which the end of the process does, whatever it is.

    Raises:
        OSError: another run has locked it.
    """
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            try:
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            with suppress(ImportError):
                import fcntl

                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise OSError(errno.EBUSY, "is in use by another run", os.fspath(path)) from None


def open_private_file(path: Path, flags: int) -> int:
    """Open a regular file, never through a symbolic link; a new one is for its owner only."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    descriptor = os.open(path, flags | _OPENING_FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_output_path(target: Path, *, force: bool) -> None:
    """Raise ``OSError`` if anything is there; with ``force``, a regular file may be."""
    if target.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(target))
    if target.exists():
        if not target.is_file():
            raise OSError(errno.EINVAL, "is not a regular file", str(target))
        if not force:
            raise FileExistsError(errno.EEXIST, "exists already", str(target))
