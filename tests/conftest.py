"""What all tests share: servers on 127.0.0.1, and services that are closed afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiobotocore.session import AioSession

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


def local_session() -> AioSession:
    """Return a session with the credentials that the servers know, whatever the host has."""
    session = AioSession()
    session.set_credentials("testing", "testing")
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
