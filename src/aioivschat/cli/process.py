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

_COLLECT_AFTER = 50_000
"""Objects made before the collector looks for cycles. With its default of 700 or 2,000 it goes
over all calls in flight again and again, a quarter of a large job's processor time, and finds
none."""


def say(line: str) -> None:
    """Write a line for people."""
    # Where there is no standard error, print would put it among the tokens.
    if sys.stderr is not None:
        print(line, file=sys.stderr)


def complain(reason: str, status: int = FAILED) -> int:
    """Say what went wrong, and return the exit status for it."""
    # One line, whatever a message holds.
    say(f"aioivschat: {' '.join(reason.split())}")
    return status


def check_standard_output() -> None:
    """Refuse to start if nobody could read what is written.

    Raises:
        BrokenPipeError: there is no standard output.
    """
    if sys.stdout is None:
        raise BrokenPipeError


def write_to_standard_output(line: str) -> None:
    """Write past Python's buffer: a line is out at once, and nothing is left to flush."""
    rest = line.encode()
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]


class Terminated(Exception):
    """A signal ended the work.

    Args:
        number: the signal's.
    """

    def __init__(self, number: int) -> None:
        self.signal = number


def run_to_end(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, or to a signal: then everything is put away as after an interrupt.

    Raises:
        Terminated: it was a signal.
    """
    received: list[int] = []
    gc.set_threshold(_COLLECT_AFTER)

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def end(number: int) -> None:
            received.append(number)
            if task is not None:
                task.cancel()

        for number in (signal.SIGTERM, signal.SIGHUP):
            # Under nohup it is to be ignored.
            if signal.getsignal(number) == signal.SIG_DFL:
                loop.add_signal_handler(number, end, number)
        return await work

    try:
        return asyncio.run(main())
    except asyncio.CancelledError:
        if received:
            raise Terminated(received[0]) from None
        raise


def explain(error: Exception) -> int:
    """Say why a command ended early, where there is anything to say.

    Returns:
        The exit status.
    """
    match error:
        case Terminated():
            return 128 + error.signal
        case BrokenPipeError():
            # Whoever read the output has had enough.
            return FAILED
        case InvalidConfiguration() | InvalidRequest():
            return complain(str(error), USED_WRONGLY)
        case ChatTokenError() | BotoCoreError():
            return complain(f"{type(error).__name__}: {error}")
        case OSError():
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            return complain(f"{where}{error.strerror or type(error).__name__}")
        case _:
            # Of an error that nobody foresaw, the message may repeat the input.
            return complain(f"unexpected {type(error).__name__}")
