"""What all tests share: servers on 127.0.0.1, and services that are closed afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from aiobotocore.session import AioSession
from moto.core.models import botocore_stubber

from aioivschat import AsyncTokenService, Clock, Quota
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.emulator.moto_backend import MotoServer

if TYPE_CHECKING:
    from engine import EngineServer  # needs redis-py

ROOM = "arn:aws:ivschat:us-east-1:123456789012:room/AbCdEfGhIjKl"

UNLIMITED = Quota(rate=1_000_000.0)
"""For tests that are not about the pace."""

Server = ThreadedEmulatorServer | MotoServer
pytest_plugins = ["pytester", "faults"]

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
    """Let the suite run both ways in which requests are sent, and search for longer."""
    parser.addoption(
        "--general",
        action="store_true",
        help="every request of the tests goes the general way: none is prepared once per client",
    )
    parser.addoption(
        "--programs",
        type=int,
        default=1_000,
        metavar="N",
        help="how many random programs the simulation runs (default: %(default)s)",
    )
    parser.addoption(
        "--as-found",
        action="store_true",
        help="a program that fails is shown as it was found, not made as small as it goes",
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


SEALING_KEY = b"k" * 32


@pytest.fixture(scope="session")
def _engine_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    from engine import EngineServer

    with EngineServer(tmp_path_factory.mktemp("engine")) as server:
        yield server


@pytest.fixture
def engine_server(_engine_server: EngineServer) -> Iterator[EngineServer]:
    """A running Valkey or Redis with nothing in it; it must find no fault with what it is told."""
    with _engine_server.client() as client:
        client.flushall()
        client.script_flush()
        client.config_resetstat()
    yield _engine_server
    with _engine_server.client() as client:
        unknown = client.info("errorstats").get("errorstat_NOSCRIPT", {"count": 0})["count"]
        calls = client.info("commandstats")
    scripts = [calls.get(f"cmdstat_{name}", {"failed_calls": 0}) for name in ("evalsha", "eval")]
    # A script that fails would look as if the engine was away.
    assert unknown == sum(script["failed_calls"] for script in scripts)


@pytest.fixture
def open_member(open_service: OpenService, engine_server: EngineServer) -> OpenService:
    """A factory of services that share the engine, each as a process of a fleet has one."""
    from aioivschat.redis import RedisTier

    def make(url: str = engine_server.url, **options: Any) -> AsyncTokenService:
        # A busy machine must not look like an engine that is away.
        tier: dict[str, Any] = {"keys": [SEALING_KEY], "timeout": 5.0} | {
            name: options.pop(name) for name in ("keys", "namespace") if name in options
        }
        return open_service(shared=RedisTier(url, **tier), **options)

    return make
