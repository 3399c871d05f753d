"""Whether a service is open, and on which event loop of which process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextvars import Context
from enum import Enum

from aioivschat.errors import ChatTokenError, Interrupted, ServiceClosed, WrongLoop

_NOT_OPEN = object()


class State(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class Lifecycle:
    """The life of one service. It belongs to the event loop and the process that first use it.

    Attributes:
        loop_while_open: the event loop, as long as the service is open there; a call that runs on
            it needs no other check.
    """

    def __init__(self, on_first_use: Callable[[], None]) -> None:
        self.state = State.OPEN
        self.loop_while_open: object = _NOT_OPEN
        self._on_first_use = on_first_use
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0

    @property
    def is_open(self) -> bool:
        """Whether new calls are taken."""
        return self.state is State.OPEN

    @property
    def is_used(self) -> bool:
        """Whether an event loop has used it."""
        return self._loop is not None

    def check_open(self) -> None:
        """Check that a call may go on here.

        Raises:
            ServiceClosed: the service is closing or closed.
            WrongLoop: it belongs to another event loop, thread or process.
        """
        if self.loop_while_open is _running_loop():
            return
        if not self.is_open:
            raise ServiceClosed
        self.check_loop()
        self.loop_while_open = self._loop

    def check_loop(self) -> None:
        """Bind the service to the running event loop at its first use, and check it at others.

        Raises:
            WrongLoop: it belongs to another event loop, thread or process.
        """
        self._check_process()
        loop = _running_loop()
        if loop is None:
            raise WrongLoop("thread")
        if self._loop is None:
            self._on_first_use()
            self._loop, self._process = loop, os.getpid()
        elif self._loop is not loop:
            raise WrongLoop("event loop")

    def check_thread(self) -> None:
        """Check that nothing changes while this thread reads: the loop runs here, or not at all.

        Raises:
            WrongLoop: it runs in another thread, or in another process.
        """
        self._check_process()
        if self._loop is not None and self._loop is not _running_loop() and self._loop.is_running():
            raise WrongLoop("thread")

    def run_on_loop(self, work: Callable[..., object], *args: object) -> None:
        """Do work at once if this is the loop's thread or nothing was used yet; else hand it over.

        The loop does it before all that it is asked afterwards.

        Raises:
            WrongLoop: the loop is closed or of another process.
        """
        run = _without_arguments(work, *args)
        del args  # out of tracebacks that show locals
        self._check_process()
        if self._loop is None or self._loop is _running_loop():
            run()
            return
        try:
            self._loop.call_soon_threadsafe(run, context=Context())
        except RuntimeError:
            raise WrongLoop("event loop") from None

    def _check_process(self) -> None:
        if self._loop is not None and self._process != os.getpid():
            raise WrongLoop("process")

    def explain_cancellation(self, work: str) -> ChatTokenError:
        """Return the error for work that was cancelled, though no caller was."""
        return Interrupted(work) if self.is_open else ServiceClosed()

    def begin_closing(self) -> None:
        """Take no new calls."""
        self.state = State.CLOSING
        self.loop_while_open = _NOT_OPEN

    def end(self) -> None:
        """Note that the service is closed."""
        self.state = State.CLOSED
        self.loop_while_open = _NOT_OPEN


def _without_arguments(work: Callable[..., object], *args: object) -> Callable[[], object]:
    # asyncio's log shows a callback with its arguments, and tracebacks the locals of a frame.
    held = list(args)
    del args

    def run() -> None:
        try:
            work(*held)
        finally:
            held.clear()

    return run


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
