"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

No I/O can be waited for on such a loop, so there is also a session whose clients need no network.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from aiobotocore.session import AioSession

from aioivschat._clock import Clock

EPOCH = 1_800_000_000.0
"""Seconds by which the wall clock is ahead of virtual time: a date in 2027."""


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the loop's time by the timeout, instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # No system call: it would take longer than everything else that the loop does.
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time, on which neither I/O nor a thread can be waited for."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time."""
        return self._jumping.now

    def stall(self, seconds: float) -> None:
        """Advance time, as a callback does that takes ``seconds``."""
        self._jumping.now += seconds


class LoopClock(Clock):
    """A clock whose wall and monotonic time are those of a virtual loop.

    Args:
        loop: the loop.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        # The loop's own method, for speed: it is called a dozen times for every token.
        self.monotonic = loop.time

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return EPOCH + self._loop.time()


CreateChatToken = Callable[..., Awaitable[Mapping[str, Any]]]
"""What takes the place of a client's ``create_chat_token``."""


def in_process_session(
    open_client: Callable[[str], Awaitable[CreateChatToken]], session: AioSession | None = None
) -> AioSession:
    """Return a session whose clients call a function of this process instead of AWS.

    Args:
        open_client: given a region, returns the function for its clients.
        session: a session to change; a new one by default.
    """

    @asynccontextmanager
    async def create_client(
        *_: object, region_name: str, endpoint_url: str, **__: object
    ) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(
            meta=SimpleNamespace(endpoint_url=endpoint_url),
            create_chat_token=await open_client(region_name),
        )

    session = session or AioSession()
    # Replaced rather than overridden: its type has an overload for every service of AWS.
    vars(session)["create_client"] = create_client
    return session
