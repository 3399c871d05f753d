"""Services and sessions of tests, and what is waited for and compared in many of them."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from copy import copy
from typing import Any

from aiobotocore.hooks import AioHierarchicalEmitter
from aiobotocore.session import AioSession
from botocore.loaders import create_loader
from moto.core.models import botocore_stubber

from aioivschat import AsyncTokenService, Clock, Quota
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.emulator.moto_backend import MotoServer

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEfGhIjKl"

UNLIMITED = Quota(rate=1_000_000.0)
"""For tests that are not about the pace."""

Server = ThreadedEmulatorServer | MotoServer
OpenService = Callable[..., AsyncTokenService]


_LOADER = create_loader()
"""It reads each file once, for the sessions of all tests."""


@functools.cache
def _builtin_listeners() -> Any:
    """Return those of every session; to register them anew for each takes ten times a copy."""
    emitter: Any = AioHierarchicalEmitter()
    session: Any = AioSession(event_hooks=emitter)
    # moto listens to every session from its import on, for mocks that are not used here.
    session.unregister("before-send", botocore_stubber)
    return emitter


go_the_general_way = False
"""Whether no request of the tests is prepared: `--general`."""

SEALING_KEY = b"k" * 32


class BentClock(Clock):
    """The host's clock, bent by tests.

    Attributes:
        stepped: seconds by which somebody set the wall clock off.
        ahead: seconds by which the monotonic clock runs ahead: time that passed for the test.
    """

    def __init__(self) -> None:
        self.stepped = 0.0
        self.ahead = 0.0

    def wall(self) -> float:
        """Return seconds since the epoch."""
        return super().wall() + self.stepped

    def monotonic(self) -> float:
        """Return seconds that never go back."""
        return super().monotonic() + self.ahead

    def pass_by(self, seconds: float) -> None:
        """Let time pass on both clocks."""
        self.stepped += seconds
        self.ahead += seconds


def bare_session(*credentials: str) -> AioSession:
    """Return a session that nobody listens to, whichever way the suite runs.

    Args:
        credentials: key, secret and session token; none if the session is to find its own.
    """
    listeners = copy(_builtin_listeners())
    session: Any = AioSession(event_hooks=listeners, include_builtin_handlers=False)
    if credentials:
        session.set_credentials(*credentials)
    # Reading what botocore knows of AWS is most of what a client costs.
    session.register_component("data_loader", _LOADER)
    opened: AioSession = session
    return opened


def local_session() -> AioSession:
    """Return a session with the credentials that the servers know, whatever the host has."""
    session = bare_session("testing", "testing")
    if go_the_general_way:
        # Who listens is to hear of every request, so none can be prepared.
        session.register("before-call.ivschat", lambda **_: None)
    return session


async def until(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait until something holds; the limit only ends a test that would hang."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.002)


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """Return what each of concurrent calls gave: its value or its exception."""
    return await asyncio.gather(*calls, return_exceptions=True)
