"""Files for secrets: their owner's only, and never opened through a symbolic link."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO


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


def open_private_file(path: Path, flags: int) -> int:
    """Open a regular file, never through a symbolic link; a new one is for its owner only."""
    if path.is_symlink():
        raise OSError(errno.ELOOP, "is a symbolic link", str(path))
    # O_NONBLOCK: opening a pipe that nobody reads would block.
    more = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags | more, 0o600)
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
