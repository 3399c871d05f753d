"""The command as a process: what it writes to, what stops it, and the status it ends with."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError

from aioivschat.cli import FAILED, USED_WRONGLY
from aioivschat.errors import (
    ChatTokenError,
    CredentialsFailed,
    InvalidConfiguration,
    InvalidRequest,
)

T = TypeVar("T")

_COLLECTOR_THRESHOLD = 50_000
"""Objects made before the collector looks for cycles. With Python's default of 700 or 2,000 it
goes over all calls in flight again and again: a quarter of a large job's processor time, to find
no cycle."""

_ENDING_SIGNALS = ("SIGTERM", "SIGHUP", "SIGBREAK")  # those of a terminal that is closed, too


def say(line: str) -> None:
    """Write a line for people to standard error, if there is somebody to read it."""
    # print(file=None) would write it to standard output, among the tokens.
    if sys.stderr is not None:
        try:
            print(line, file=sys.stderr)
        except OSError:  # its reader has gone, say, which is no failure of the work
            sys.stderr = None


def say_failure(reason: str, status: int = FAILED) -> int:
    """Say why the command failed, in one line, and return the exit status for it."""
    say(f"aioivschat: {' '.join(reason.split())}")
    return status


def check_standard_output() -> None:
    """Raise BrokenPipeError if the process was started without a standard output."""
    if sys.stdout is None:
        raise BrokenPipeError


def write_to_standard_output(line: str) -> None:
    """Write at once, without Python's buffer: nothing is left to flush at the end."""
    write_all(sys.stdout.fileno(), line.encode())


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data, also to a pipe that another process has set not to block."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select((), (descriptor,), ())


class WaitingInput(io.FileIO):
    """A file whose reads wait for data, even if another process has set it not to block."""

    def readinto(self, buffer: Any) -> int:
        """Read some bytes; none only at the end."""
        while (count := super().readinto(buffer)) is None:
            select.select((self,), (), ())
        return count


class Terminated(Exception):
    """The signal of this number ended the work."""


@contextmanager
def calling_on_signals(names: Iterable[str], call: Callable[[int], object]) -> Iterator[None]:
    """Have signals call something on the running loop, with their number, while the block runs.

    A signal that is ignored stays so, as nohup asks for that; one that the system does not know
    never comes.
    """
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}
    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
            previous[number] = handler
            try:
                loop.add_signal_handler(number, call, number)
            except NotImplementedError:  # on Windows
                signal.signal(number, lambda sent, _: loop.call_soon_threadsafe(call, sent))
    try:
        yield
    finally:
        for number, handler in previous.items():
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; if a signal ends the work, as an interrupt would, raise Terminated."""
    received: list[int] = []
    gc.set_threshold(_COLLECTOR_THRESHOLD)

    async def main() -> T:
        task = asyncio.current_task()

        def end(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        with calling_on_signals(_ENDING_SIGNALS, end):
            return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise Terminated(received[0]) from None
        raise


def say_why_it_ended(error: Exception) -> int:
    """Say why a command ended early, if that needs saying, and return the exit status."""
    match error:
        case Terminated(args=(number,)):
            return 128 + int(number)
        case BrokenPipeError():
            # The reader of the output has closed it, as head(1) does.
            return FAILED
        case InvalidConfiguration() | InvalidRequest():
            return say_failure(str(error), USED_WRONGLY)
        case CredentialsFailed():
            return say_failure(str(error))  # it begins with the name of what it comes from
        case ChatTokenError() | BotoCoreError():
            return say_failure(f"{type(error).__name__}: {error}")
        case OSError():
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            return say_failure(f"{where}{error.strerror or type(error).__name__}")
        case _:
            # The message of an unforeseen error may hold a user id or a token.
            return say_failure(f"unexpected {type(error).__name__}")
