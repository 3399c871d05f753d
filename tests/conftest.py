"""What all tests share: servers on 127.0.0.1, and services that are closed afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiobotocore.session import AioSession
from moto.core.models import botocore_stubber

from aioivschat import AsyncTokenService, Clock, Quota
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.emulator.moto_backend import MotoServer

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEfGhIjKl"

UNLIMITED = Quota(rate=1_000_000.0)
"""For tests that are not about the pace."""

Server = ThreadedEmulatorServer | MotoServer
pytest_plugins = ["pytester"]

OpenService = Callable[..., AsyncTokenService]


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


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the suite run both ways in which requests are sent."""
    parser.addoption(
        "--general",
        action="store_true",
        help="every request of the tests goes the general way: none is prepared once per client",
    )


_general = False


def pytest_configure(config: pytest.Config) -> None:
    """Take note of the way, for whoever opens a session."""
    global _general
    _general = config.getoption("--general")


def bare_session(*credentials: str) -> AioSession:
    """Return a session that nobody listens to, whichever way the suite runs.

    Args:
        credentials: key, secret and session token; none if the session is to find its own.
    """
    session: Any = AioSession()
    if credentials:
        session.set_credentials(*credentials)
    # moto listens to every session from its import on, for mocks that are not used here.
    session.unregister("before-send", botocore_stubber)
    opened: AioSession = session
    return opened


def local_session() -> AioSession:
    """Return a session with the credentials that the servers know, whatever the host has."""
    session = bare_session("testing", "testing")
    if _general:
        # Who listens is to hear of every request, so none can be prepared.
        session.register("before-call.ivschat", lambda **_: None)
    return session


@pytest.fixture
async def open_service(
    ivschat_emulator: ThreadedEmulatorServer,
) -> AsyncIterator[OpenService]:
    """A factory of services that talk to the emulator and are closed after the test."""
    services: list[AsyncTokenService] = []

    def make(**options: Any) -> AsyncTokenService:
        options.setdefault("session", local_session())
        options.setdefault("endpoint_url", ivschat_emulator.url)
        options.setdefault("quota", UNLIMITED)
        service = AsyncTokenService(**options)
        services.append(service)
        return service

    yield make
    for service in services:
        await service.aclose(grace=1.0)


async def until(condition: Callable[[], bool], *, within: float = 10.0) -> None:
    """Wait until something holds; the limit only ends a test that would hang."""
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.002)


async def outcomes(*calls: Awaitable[Any]) -> list[Any]:
    """Return what each of concurrent calls gave: its value or its exception."""
    return await asyncio.gather(*calls, return_exceptions=True)
