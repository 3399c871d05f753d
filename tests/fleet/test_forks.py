"""Processes that were forked after the service was made, as by ``gunicorn --preload``."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import pytest

from aioivschat import (
    AsyncTokenService,
    Clock,
    Event,
    Invalidated,
    Quota,
    Retrying,
    RetryPolicy,
    TokenRequest,
)
from aioivschat._endpoint.endpoint import Endpoint
from aioivschat._service.fair_queue import Connections
from aioivschat.aiohttp import EndpointPolicy
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, UNLIMITED, local_session, outcomes, until

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")

REQUEST = TokenRequest(ROOM, "alice")
CHILDREN = 2


class Children:
    """Forked processes, each with what it said."""

    def __init__(self, work: Callable[[int], str]) -> None:
        """Fork; each child does the work for its number, and is gone after 30 s at the latest."""
        self._pipes: list[tuple[int, int]] = []
        for number in range(CHILDREN):
            source, sink = os.pipe()
            child = os.fork()
            if child == 0:  # runs no further than this block, and cannot fail the parent
                signal.alarm(30)
                try:
                    os.write(sink, work(number).encode())
                finally:
                    os._exit(0)
            os.close(sink)
            self._pipes.append((child, source))

    def said(self) -> list[str]:
        """Wait for all, and return what each said."""
        said = []
        for child, source in self._pipes:
            with os.fdopen(source) as pipe:
                said.append(pipe.read())
            os.waitpid(child, 0)
        return said


@pytest.mark.fault(37)
def test_forked_processes_do_not_retry_in_step(
    ivschat_emulator: ThreadedEmulatorServer,
) -> None:
    """The delays of one process are not those of another."""
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.ERROR_500, times=None))
    delays: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Retrying):
            delays.append(event.delay)

    tokens = AsyncTokenService(
        session=local_session(),
        endpoint_url=ivschat_emulator.url,
        quota=UNLIMITED,
        retry=RetryPolicy(max_attempts=6, base_delay=0.001),
        observers=[note],
    )

    async def call() -> None:
        async with tokens:
            await outcomes(tokens.issue(REQUEST))

    def work(_: int) -> str:
        asyncio.run(call())
        return f"{delays}"

    said = Children(work).said()
    assert [5] * CHILDREN == [len(one.split(",")) for one in said]
    assert CHILDREN == len(set(said))


def _reachable(root: object) -> Iterator[object]:
    """Go through all that an object holds, but for code."""
    seen, found = {id(root)}, [root]
    while found:
        one = found.pop()
        yield one
        for held in gc.get_referents(one):
            if id(held) not in seen and not isinstance(held, type | ModuleType | FunctionType):
                seen.add(id(held))
                found.append(held)


@pytest.mark.fault(37)
def test_nothing_that_is_made_before_a_fork_has_a_state_of_chance() -> None:
    """Service, fleet and endpoint draw from the system, which no fork can copy."""

    async def authorize(*_: object) -> None: ...

    tier = RedisTier("redis://127.0.0.1:1/0", keys=[SEALING_KEY])
    tokens = AsyncTokenService(session=local_session(), shared=tier)
    limiter = tier.limiter(
        "123456789012", "us-east-1", Quota(), lambda *_: None, Connections(Clock())
    )
    endpoint: Any = Endpoint(authorize, EndpointPolicy(), ValueError)
    for part in (tokens, tier, limiter, endpoint):
        sources = [one for one in _reachable(part) if isinstance(one, random.Random)]
        assert sources
        assert all(isinstance(one, random.SystemRandom) for one in sources)


@pytest.mark.fault(37)
def test_forked_processes_are_members_of_their_own(
    ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """Two of one preloaded service: they count as two, and each obeys the other's bans."""
    heard: list[Event] = []
    tier = RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=5.0)
    tokens = AsyncTokenService(
        session=local_session(),
        endpoint_url=ivschat_emulator.url,
        shared=tier,
        observers=[heard.append],
    )
    tokens.estimate(ROOM)  # makes the limiter, before the fork too

    def invalidations() -> int:
        return sum(isinstance(event, Invalidated) for event in heard)

    async def meet(number: int) -> str:
        async with tokens:
            await tokens.issue(TokenRequest(ROOM, f"user {number}"))
            with engine_server.client() as client:
                await until(lambda: client.pubsub_numsub("aioivschat:events")[0][1] == CHILDREN)
                members = "{aioivschat:123456789012:us-east-1}:members"
                await until(lambda: client.hlen(members) == CHILDREN)
            tokens.invalidate(user=f"user {number}")
            await until(lambda: invalidations() == CHILDREN)  # one of its own
            return "met"

    assert ["met"] * CHILDREN == Children(lambda number: asyncio.run(meet(number))).said()
