"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

No I/O can be waited for on such a loop, so there is also a session whose clients need no network.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

from aiobotocore.session import AioSession

from aioivschat._clock import Clock
from aioivschat._models import TOKEN_LIFE_SECONDS

EPOCH = 1_800_000_000.0
"""Seconds by which the wall clock is ahead of virtual time: a date in 2027."""


class _JumpingSelector(selectors.DefaultSelector):
    """Advances the loop's time by the timeout, instead of waiting."""

    now = 1_000.0

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
        return self._jumping.now

    def stall(self, seconds: float) -> None:
        """Advance time, as a callback does that takes ``seconds``."""
        self._jumping.now += seconds


class LoopClock(Clock):
    """A clock whose wall and monotonic time are those of a virtual loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        # The loop's own method, for speed: it is called a dozen times for every token.
        self.monotonic = loop.time

    def wall(self) -> float:
        return EPOCH + self._loop.time()


CreateChatToken = Callable[..., Awaitable[Mapping[str, Any]]]
"""What takes the place of a client's ``create_chat_token``."""


def in_process_session(
    open_client: Callable[[str], Awaitable[CreateChatToken]], session: AioSession | None = None
) -> AioSession:
    """Return ``session``, or a new one, changed so that its clients do without AWS.

    They call what ``open_client`` returns for their region.
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


def minting_session(clock: Clock, latency: float) -> AioSession:
    """Return a session whose clients mint in this process."""

    async def create_chat_token(*, sessionDurationInMinutes: int = 60, **_: Any) -> dict[str, Any]:  # noqa: N803 (boto3's)
        # A future and a timer: `sleep` takes twice the time.
        loop = asyncio.get_running_loop()
        answered = loop.create_future()
        loop.call_later(latency, answered.set_result, None)
        await answered
        # A token's life begins when it is made, as at AWS.
        now = datetime.fromtimestamp(clock.wall(), UTC)
        return {
            "token": "planned",
            "tokenExpirationTime": now + timedelta(seconds=TOKEN_LIFE_SECONDS),
            "sessionExpirationTime": now + timedelta(minutes=sessionDurationInMinutes),
        }

    async def open_client(_: str) -> CreateChatToken:
        return create_chat_token

    return in_process_session(open_client)
