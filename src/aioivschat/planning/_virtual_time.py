"""Virtual time: an event loop whose clock jumps to the next thing that happens.

With it goes a session whose clients need no network: no I/O can be waited for on such a loop.
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
"""What the wall clock is ahead of virtual time: some moment in 2027."""


class _JumpingSelector(selectors.DefaultSelector):
    """Lets the loop's time jump instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # The system is not even asked: that would take longer than all else that the loop does.
        if timeout is None:
            raise RuntimeError("everything waits, and nothing will ever happen")
        self.now += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop in virtual time. Neither I/O nor a thread may be waited for on it."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time."""
        return self._jumping.now

    def stall(self, seconds: float) -> None:
        """Let time pass as if a callback had taken so long."""
        self._jumping.now += seconds


class LoopClock(Clock):
    """Both clocks by the time of one virtual loop.

    Args:
        loop: whose time it is.
    """

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        # The loop's own method: it is called a dozen times for every token.
        self.monotonic = loop.time

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return EPOCH + self._loop.time()


CreateChatToken = Callable[..., Awaitable[Mapping[str, Any]]]
"""What takes the place of a client's ``create_chat_token``."""


def session_here(
    open_client: Callable[[str], Awaitable[CreateChatToken]], session: AioSession | None = None
) -> AioSession:
    """Return a session whose clients are answered in this process.

    Args:
        open_client: given a region, returns what answers there.
        session: which one is to open such clients from now on; a new one by default.
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
    # Not a subclass: the signature has an overload for every service of AWS.
    vars(session)["create_client"] = create_client
    return session
