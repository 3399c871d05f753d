"""The command ``aioivschat`` as a process, forked from one that has imported its libraries.

Like ``subprocess``, but for the time that a start of Python takes: a second and more of imports.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from support.paths import TESTS

SOON = 120.0
"""Seconds; far more than any command takes. They only end a test that would hang."""


@functools.cache
def _server(*options: str) -> socket.socket:
    """Start the server of this process, with options of Python; it ends with it."""
    ours, theirs = socket.socketpair()
    with theirs:
        server = subprocess.Popen(
            [sys.executable, *options, "-m", "support.fork_server", str(theirs.fileno())],
            cwd=TESTS,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            # Ctrl-C is for the tests: they end their commands themselves.
            start_new_session=True,
        )

    def stop() -> None:
        ours.close()
        server.wait()

    atexit.register(stop)
    return ours


def _open_stream(
    wanted: int | IO[Any] | None, mode: str, encoding: str | None
) -> tuple[IO[Any] | None, int]:
    """Return our end of a pipe, if one is wanted, and a descriptor of the command's own."""
    if wanted is None or wanted == subprocess.DEVNULL:
        return None, os.open(os.devnull, os.O_RDWR)
    if wanted != subprocess.PIPE:
        return None, os.dup(wanted if isinstance(wanted, int) else wanted.fileno())
    read, write = os.pipe()
    ours, its = (write, read) if mode == "w" else (read, write)
    return os.fdopen(ours, mode if encoding else f"{mode}b", encoding=encoding), its


class Command:
    """A running command: what there is of ``subprocess.Popen``, with its meaning.

    Args:
        arguments: those after ``aioivschat``.
        env: its environment; None: that of the tests.
        cwd: its directory; None: that of the tests.
        stdin: a file, a descriptor, ``subprocess.PIPE``, or nothing to read.
        stdout: a file, a descriptor, or ``subprocess.PIPE``; None: nobody reads it.
        stderr: the same.
        umask: the mode that its files do not get.
        file_limit: bytes that a file of its may have: what a full disk looks like.
        encoding: of pipes; None: they are binary.
        python: options of Python, as ``-X dev``; with others than before, a server starts first.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: int | IO[Any] | None = None,
        stdout: int | IO[Any] | None = None,
        stderr: int | IO[Any] | None = None,
        umask: int = 0o022,
        file_limit: int | None = None,
        encoding: str | None = None,
        python: Sequence[str] = (),
    ) -> None:
        self.returncode: int | None = None
        self.stdin, its_input = _open_stream(stdin, "w", encoding)
        self.stdout, its_output = _open_stream(stdout, "r", encoding)
        self.stderr, its_errors = _open_stream(stderr, "r", encoding)
        self._channel, far = socket.socketpair()
        with far:
            streams = (its_input, its_output, its_errors)
            socket.send_fds(_server(*python), [b"!"], [far.fileno(), *streams])
        for descriptor in streams:
            os.close(descriptor)
        request = {
            "arguments": [os.fspath(each) for each in arguments],
            "environment": dict(os.environ if env is None else env),
            "folder": os.fspath(cwd or Path.cwd()),
            "umask": umask,
            "file_limit": file_limit,
        }
        self._channel.settimeout(SOON)
        self._channel.sendall(json.dumps(request).encode() + b"\n")
        self.pid = self._next_number()

    def _next_number(self) -> int:
        line = b""
        while not line.endswith(b"\n"):
            line += (part := self._channel.recv(1))
            assert part, "the server of commands is gone"
        return int(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in (self.stdout, self.stderr, self.stdin):
            if pipe is not None:
                pipe.close()
        self.wait(SOON)

    def poll(self) -> int | None:
        """Return the exit status, if it has ended."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float = SOON) -> int:
        """Wait for its end, and return the exit status."""
        if self.returncode is None:
            self._channel.settimeout(timeout)
            try:
                self.returncode = self._next_number()
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("aioivschat", timeout) from None
            self._channel.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it may end meanwhile
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, text: Any = None, timeout: float = SOON) -> tuple[Any, Any]:
        """Write all of its input and read all of its output, to its end."""
        with ThreadPoolExecutor(3) as pool:
            pool.submit(self._write_all, text)
            reading = [pipe and pool.submit(pipe.read) for pipe in (self.stdout, self.stderr)]
            try:
                out, err = (each and each.result(timeout) for each in reading)
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
        self.__exit__(None, None, None)
        return out, err

    def _write_all(self, text: Any) -> None:
        if self.stdin is not None:
            try:
                with self.stdin:
                    if text is not None:
                        self.stdin.write(text)
            except BrokenPipeError:
                pass


def run(
    arguments: Sequence[str], *, text: Any = None, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Run the command to its end, with a text as its input."""
    if text is not None:
        options["stdin"] = subprocess.PIPE
    command = Command(arguments, **options)
    out, err = command.communicate(text)
    return subprocess.CompletedProcess(list(arguments), command.wait(), out, err)
