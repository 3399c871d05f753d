"""Fixtures of the emulator's tests: a model on stepped clocks, a server, and its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from aioivschat.emulator import Emulator, EmulatorServer
from support.emulators import SteppedTime, client_of


@pytest.fixture
def time() -> SteppedTime:
    """Clocks that stand still until a test moves them."""
    return SteppedTime()


@pytest.fixture
def emulator(time: SteppedTime) -> Emulator:
    """A model on the stepped clocks of the fixture ``time``."""
    return Emulator(clock=time.wall, monotonic=time.monotonic)


@pytest.fixture
async def server() -> AsyncIterator[EmulatorServer]:
    """A running server with a model of its own."""
    async with EmulatorServer() as running:
        yield running


@pytest.fixture
async def client(server: EmulatorServer) -> AsyncIterator[Any]:
    """An aiobotocore client of the emulator's server."""
    async with client_of(server.url) as opened:
        yield opened


@pytest.fixture
async def http(server: EmulatorServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A bare HTTP client of the emulator's server."""
    async with aiohttp.ClientSession(server.url) as session:
        yield session
