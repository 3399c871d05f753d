"""What all tests share: servers on 127.0.0.1, and services that are closed afterwards."""

from __future__ import annotations

import io
import logging
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from aioivschat import AsyncTokenService
from aioivschat.emulator import ThreadedEmulatorServer
from support import services
from support.contexts import Callers
from support.services import SEALING_KEY, UNLIMITED, OpenService, local_session

if TYPE_CHECKING:
    from support.engine import EngineServer  # needs redis-py

pytest_plugins = ["pytester", "support.faults", "support.node", "support.tasks"]

# On a busy machine an example may take any time.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


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


def pytest_configure(config: pytest.Config) -> None:
    """Take note of the way, for whoever opens a session."""
    services.go_the_general_way = config.getoption("--general")


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What all loggers write, with the root at DEBUG."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield text
    root.removeHandler(handler)
    root.setLevel(level)


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


@pytest.fixture
async def callers() -> AsyncIterator[Callers]:
    """Calls whose contexts are to be gone when they are over."""
    callers = Callers()
    yield callers
    callers.close()


@pytest.fixture(scope="session")
def _engine_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineServer]:
    from support.engine import EngineServer

    with EngineServer(tmp_path_factory.mktemp("engine")) as server:
        yield server


@pytest.fixture
def engine_server(_engine_server: EngineServer) -> Iterator[EngineServer]:
    """A running Valkey or Redis with nothing in it; it must find no fault with what it is told."""
    if not _engine_server.is_running:  # a test that failed has killed it
        _engine_server.start()
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
