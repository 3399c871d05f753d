"""Whether a service is open, and on which event loop of which process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
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
            WrongLoop: it belongs to another event loop or process.
        """
        if self.loop_while_open is asyncio.get_running_loop():
            return
        if not self.is_open:
            raise ServiceClosed
        self.check_loop()
        self.loop_while_open = self._loop

    def check_loop(self) -> None:
        """Bind the service to the running event loop at its first use, and check it at others.

        Raises:
            WrongLoop: it belongs to another event loop or process.
        """
        if self._loop is None:
            loop = asyncio.get_running_loop()
            self._on_first_use()
            self._loop, self._process = loop, os.getpid()
        elif self._process != os.getpid():
            raise WrongLoop("process")
        elif self._loop is not asyncio.get_running_loop():
            raise WrongLoop("event loop")

    def explain_cancellation(self, work: str) -> ChatTokenError:
        """Return why work was cancelled that nobody's call cancelled."""
        return Interrupted(work) if self.is_open else ServiceClosed()

    def begin_closing(self) -> None:
        """Take no new calls."""
        self.state = State.CLOSING
        self.loop_while_open = _NOT_OPEN

    def end(self) -> None:
        """Be closed."""
        self.state = State.CLOSED
        self.loop_while_open = _NOT_OPEN
