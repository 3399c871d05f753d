"""The command as a process: what it writes to, what stops it, and the status it ends with."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from botocore.exceptions import BotoCoreError

from aioivschat.cli import FAILED, USED_WRONGLY
from aioivschat.errors import ChatTokenError, InvalidConfiguration, InvalidRequest

T = TypeVar("T")

_COLLECTOR_THRESHOLD = 50_000
"""Objects made before the collector looks for cycles. With Python's default of 700 or 2,000 it
goes over all calls in flight again and again: a quarter of a large job's processor time, to find
no cycle."""


def say(line: str) -> None:
    """Write a line for people to standard error."""
    # print(file=None) would write it to standard output, among the tokens.
    if sys.stderr is not None:
        print(line, file=sys.stderr)


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
    rest = line.encode()
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


class Terminated(Exception):
    """The signal of this number ended the work."""


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end; if a signal ends the work, as an interrupt would, raise Terminated."""
    received: list[int] = []
    gc.set_threshold(_COLLECTOR_THRESHOLD)

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            # A signal that is ignored stays so: nohup asks for that.
            if signal.getsignal(number) == signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
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
        case ChatTokenError() | BotoCoreError():
            return say_failure(f"{type(error).__name__}: {error}")
        case OSError():
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            return say_failure(f"{where}{error.strerror or type(error).__name__}")
        case _:
            # The message of an unforeseen error may hold a user id or a token.
            return say_failure(f"unexpected {type(error).__name__}")
