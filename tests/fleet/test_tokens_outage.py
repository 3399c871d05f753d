"""Tokens while the engine is away: calls go on, and no token is handed out twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aioivschat import AsyncTokenService, Event, SharedChanged, SharedState, TokenRequest
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, OpenService, outcomes, until

REQUEST = TokenRequest(ROOM, "alice")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EngineServer]:
    """A server that the test may kill."""
    with EngineServer(tmp_path) as engine:
        yield engine


def _tier(server: EngineServer) -> RedisTier:
    return RedisTier(server.url, keys=[SEALING_KEY])


def _states(events: list[Event]) -> list[SharedState]:
    return [event.state for event in events if isinstance(event, SharedChanged)]


async def _away(member: AsyncTokenService, events: list[Event]) -> None:
    """Issue tokens until the service knows that the engine is away."""
    while _states(events)[-1:] != [SharedState.LOCAL]:
        await member.issue(REQUEST, fresh=True)


async def test_calls_go_on_without_the_engine_and_share_again_after_it_is_back(
    open_service: OpenService, server: EngineServer
) -> None:
    """Without the engine calls succeed, cached tokens stay, and both changes make an event."""
    events: list[Event] = []
    here = open_service(shared=_tier(server), observers=[events.append])
    there = open_service(shared=_tier(server))
    first = await here.issue(REQUEST, idempotency_key="attempt")
    server.kill()
    await _away(here, events)
    assert first.token == (await here.issue(REQUEST, idempotency_key="attempt")).token
    alone = await here.issue(REQUEST, idempotency_key="alone")
    assert alone.token != (await there.issue(REQUEST, idempotency_key="alone")).token
    server.start()
    await until(lambda: _states(events)[-1:] == [SharedState.SHARED], within=20.0)
    # The other process finds the engine at its own moment.
    async with asyncio.timeout(20.0):
        for number in range(10_000):
            one = await here.issue(REQUEST, idempotency_key=f"again-{number}")
            if one.token == (await there.issue(REQUEST, idempotency_key=f"again-{number}")).token:
                break
    assert [SharedState.SHARED, SharedState.LOCAL, SharedState.SHARED] == _states(events)


async def test_a_service_starts_without_the_engine(
    open_service: OpenService, server: EngineServer
) -> None:
    """A service whose engine is away from the start issues tokens, and says that it is local."""
    server.kill()
    events: list[Event] = []
    member = open_service(shared=_tier(server), observers=[events.append])
    tokens = await asyncio.gather(*(member.issue(REQUEST, fresh=True) for _ in range(20)))
    assert 20 == len({token.token for token in tokens})
    assert [SharedState.LOCAL] == _states(events)[:1]


async def test_what_is_prewarmed_without_the_engine_is_the_process_s_own_stock(
    open_service: OpenService, server: EngineServer, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """Tokens prewarmed without the engine go to one call each, also after the engine is back."""
    events: list[Event] = []
    member = open_service(shared=_tier(server), observers=[events.append])
    await member.issue(REQUEST, fresh=True)
    server.kill()
    await _away(member, events)
    before = ivschat_emulator.emulator.counts().requests
    assert 3 == (await member.prewarm([REQUEST] * 3)).minted
    assert 3 == member.stats().stock_held
    tokens = [await member.issue(REQUEST, fresh=True)]
    server.start()
    await until(lambda: _states(events)[-1:] == [SharedState.SHARED], within=20.0)
    tokens += [await member.issue(REQUEST, fresh=True) for _ in range(3)]
    assert 4 == len({token.token for token in tokens})
    assert [False] * 4 == [token.reused for token in tokens]
    assert 4 == ivschat_emulator.emulator.counts().requests - before


async def test_a_token_that_may_have_reached_the_engine_is_not_kept_here_too(
    open_service: OpenService, server: EngineServer, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """A token that was sent to an engine that stopped is not kept here, and is claimed once."""
    events: list[Event] = []
    member = open_service(shared=_tier(server), observers=[events.append])
    await member.issue(REQUEST, fresh=True)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.2))
    before = ivschat_emulator.emulator.counts().requests
    prewarming = asyncio.create_task(member.prewarm([REQUEST]))
    await until(lambda: ivschat_emulator.emulator.counts().requests > before)
    with server.stopped():
        assert 1 == (await prewarming).minted
        assert 0 == member.stats().stock_held
    await until(lambda: _states(events)[-1:] == [SharedState.SHARED], within=20.0)
    tokens = [await member.issue(REQUEST, fresh=True) for _ in range(3)]
    assert 3 == len({token.token for token in tokens})


async def test_an_invalidation_is_sent_when_the_engine_is_back(
    open_service: OpenService, server: EngineServer
) -> None:
    """An invalidation without the engine reaches other processes after the engine is back."""
    events: list[Event] = []
    here = open_service(shared=_tier(server), observers=[events.append])
    there = open_service(shared=_tier(server))
    await here.issue(TokenRequest(ROOM, "somebody"))
    server.kill()
    first = await there.issue(REQUEST)
    await _away(here, events)
    here.invalidate(user="alice")
    assert first.token == (await there.issue(REQUEST)).token
    server.start()
    await until(lambda: there.ready(REQUEST) is None, within=20.0)
    assert first.token != (await there.issue(REQUEST)).token


@pytest.mark.parametrize(
    "settings",
    [{"maxmemory": "1mb"}, {"requirepass": "another"}, {"replicaof": "127.0.0.1 1"}],
    ids=["full", "wrong password", "read-only"],
)
async def test_an_engine_that_refuses_counts_as_away(
    open_service: OpenService, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """With a full or read-only engine, or a wrong password, the process issues tokens by itself."""
    events: list[Event] = []
    with EngineServer(tmp_path / "own", **settings) as engine:
        member = open_service(shared=_tier(engine), observers=[events.append])
        await member.prewarm([REQUEST])
        tokens = [await member.issue(REQUEST, fresh=True) for _ in range(3)]
        assert 3 == len({token.token for token in tokens})
        assert SharedState.LOCAL in _states(events)
        await member.aclose()


async def test_closing_does_not_wait_for_an_engine_that_is_away(
    open_service: OpenService, server: EngineServer
) -> None:
    """Closing ends within seconds with an invalidation pending and the engine stopped."""
    member = open_service(shared=_tier(server))
    await member.issue(REQUEST)
    with server.stopped():
        member.invalidate(room=ROOM)
        call = asyncio.create_task(member.issue(REQUEST, fresh=True))
        await asyncio.sleep(0)
        async with asyncio.timeout(5.0):
            await member.aclose(grace=0.0)
        await outcomes(call)
