"""The fleet's time: what it does to tokens, leases and fences if the engine's clock is set."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from aioivschat import ChatToken, Clock, TokenRequest
from aioivschat._models import Attempt
from aioivschat._service.fleet import Busy, Fenced, Held
from aioivschat.redis._engine import Engine, Script
from aioivschat.redis._sealing import Sealer
from aioivschat.redis._tokens import RedisFlight, RedisTokens
from fleet.test_strange_values import STRANGE, write_other_type
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, until

ALICE = TokenRequest(ROOM, "alice").identity
NOW = datetime.now(UTC)
BACK = pytest.mark.parametrize("back", [0.2, 5.0, 59.0, 3_600.0, 1.7e9])
"""Seconds by which the clock is set back; at last to the seventies."""


class BentEngine(Engine):
    """An engine whose clock can be set; `ahead` is by how many seconds it is before the host's."""

    ahead = 0.0

    async def _eval(self, seconds: float, call: Any, client: Any = None) -> Any:
        script, keys, args = call
        time = "redis.call('TIME')"
        microseconds = f"({time}[1] * 1000000 + {time}[2] + {round(self.ahead * 1e6)})"
        source = script.source.replace(time, f"{{0, math.max(0, {microseconds})}}")
        return await super()._eval(seconds, (Script(source), keys, args), client)


class Member:
    """One process's half of the tokens; all members have the same engine's clock."""

    def __init__(self, server: EngineServer) -> None:
        self.invalidated: list[tuple[str | None, str | None]] = []
        self._flights: dict[str, RedisFlight] = {}
        self.engine = BentEngine(server.url, timeout=5.0)
        self.tokens = RedisTokens(
            self.engine,
            Sealer([SEALING_KEY]),
            "aioivschat",
            Clock(),
            5.0,
            lambda room, user: self.invalidated.append((room, user)),
            lambda reason: None,
        )

    def _flight(self, key: str) -> RedisFlight:
        if key not in self._flights:
            self._flights[key] = self.tokens.flight(ALICE, Attempt((ALICE, key)))
        return self._flights[key]

    async def claim(self, key: str = "key", lease: float = 10.0) -> Any:
        """Claim a token of an attempt."""
        return await self._flight(key).claim(lease)

    async def publish(self, age: float = 0.0, key: str = "key") -> Any:
        """Publish a token for an attempt that was claimed."""
        token = ChatToken("minted", NOW + timedelta(minutes=1), NOW + timedelta(hours=1))
        return await self._flight(key).publish(token, 60.0, age)

    async def invalidate(self) -> None:
        """Invalidate the room, and wait until the engine knows."""
        self.tokens.invalidate(ROOM, None)
        await until(lambda: not self.tokens._invalidations.pending)


@pytest.fixture
async def members(engine_server: EngineServer) -> AsyncIterator[list[Member]]:
    """Two members of a fleet."""
    async with AsyncExitStack() as stack:
        made = [Member(engine_server), Member(engine_server)]
        for member in made:
            stack.push_async_callback(member.engine.aclose)
            stack.push_async_callback(member.tokens.aclose)
        yield made


def set_clock(members: list[Member], ahead: float) -> None:
    """Set the engine's clock."""
    for member in members:
        member.engine.ahead = ahead


@pytest.mark.fault(53)
@BACK
async def test_no_token_outlives_itself_by_a_clock_that_goes_back(
    members: list[Member], back: float
) -> None:
    """After 40 of its 60 seconds a token has 20 left, whatever the clock does then."""
    here, there = members
    await here.claim()
    assert await here.publish() is None
    set_clock(members, 40.0)
    held = await there.claim()
    assert isinstance(held, Held)
    assert held.life <= 20.0
    set_clock(members, 40.0 - back)
    held = await there.claim()
    assert isinstance(held, Held)
    assert held.life <= 20.0
    set_clock(members, 40.0 - back + 16.0)
    assert await there.claim() is None


@pytest.mark.fault(53)
@BACK
async def test_what_is_minted_after_a_fence_is_shared_whatever_the_clock_says(
    members: list[Member], back: float
) -> None:
    """A fence of the time before the clock went back holds for what was minted before it alone."""
    here, there = members
    await here.claim("old")
    await here.invalidate()
    set_clock(members, -back)
    await here.claim()
    assert isinstance(await here.publish(age=30.0), Fenced)
    assert await here.publish() is None
    assert isinstance(await there.claim(), Held)


@pytest.mark.fault(53)
@pytest.mark.parametrize("leap", [30.0, 600.0])
async def test_what_began_before_a_fence_is_fenced_though_the_clock_leaps_ahead(
    members: list[Member], leap: float
) -> None:
    """A flight that began before an invalidation is fenced, by a clock that was set ahead too."""
    here, there = members
    await here.claim()
    await there.invalidate()
    set_clock(members, leap)
    await here.claim("other")
    assert isinstance(await here.publish(age=1.0), Fenced)


@pytest.mark.fault(53)
async def test_a_lease_ends_in_its_time_though_the_clock_goes_back(members: list[Member]) -> None:
    """The engine's own expiry would keep the lease of a process that died for another hour."""
    here, there = members
    assert await here.claim(lease=10.0) is None
    set_clock(members, -3_600.0)
    assert isinstance(await there.claim(), Busy)
    set_clock(members, -3_600.0 + 11.0)
    assert await there.claim() is None
    assert isinstance(await here.claim(), Busy)


@pytest.mark.fault(53)
@pytest.mark.parametrize("ahead", [-3_600.0, -5.0, 5.0, 600.0])
async def test_the_log_is_read_from_before_the_clock_was_set(
    members: list[Member], ahead: float
) -> None:
    """A member that listens anew after a failover applies what it missed before it."""
    here, there = members
    await there.claim()
    await here.invalidate()
    set_clock(members, ahead)
    await there.claim("another")  # it is told the newest number
    await until(lambda: [(ROOM, None)] == there.invalidated)


@pytest.mark.fault(53)
async def test_a_fence_of_a_later_time_is_of_now(
    members: list[Member], engine_server: EngineServer
) -> None:
    """If the clock's key is lost, what began before the fence is fenced, and nothing else."""
    here, there = members
    set_clock(members, 3_600.0)
    await here.invalidate()
    set_clock(members, 0.0)
    with engine_server.client() as client:
        client.delete("{aioivschat}:clock")
    await there.claim()
    assert isinstance(await there.publish(age=1.0), Fenced)
    assert await there.publish() is None
    assert isinstance(await there.claim(), Held)


@pytest.mark.fault(52)
async def test_no_value_of_the_clock_stops_the_tokens(
    members: list[Member], engine_server: EngineServer
) -> None:
    """Whatever stands under the clock's key, a token is published and found, and lives as long."""
    here, there = members
    await here.invalidate()
    texts = [each if isinstance(each, bytes) else str(each).encode() for each in STRANGE]
    with engine_server.client() as client:
        for number, (seen, added) in enumerate(zip(texts, reversed(texts), strict=True)):
            for place, text in enumerate((seen, seen + b" 0", b"0 " + added, seen + b" " + added)):
                client.set("{aioivschat}:clock", text)
                key = f"{number} {place}"
                await here.claim(key)
                assert await here.publish(key=key) is None
                held = await there.claim(key)
                assert isinstance(held, Held)
                assert math.isclose(60.0, held.life, abs_tol=10.0)
        write_other_type(client, b"{aioivschat}:clock")
        assert await here.claim("last") is None
        assert 0 < client.ttl("{aioivschat}:clock") <= 900
