"""What comes from the engine is input: whatever stands there, calls go on at the quota's pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aioivschat import Event, Quota, SharedChanged, TokenRequest
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.distant import Fleet
from support.engine import EngineServer
from support.permits import use_permit
from support.services import ROOM, SEALING_KEY, OpenService, outcomes
from support.virtual import virtual_time

STRANGE: list[bytes | float | int] = [
    0,
    -1,
    -(10**18),
    0.5,
    10**9,
    10**18,
    10**400,
    float("inf"),
    float("nan"),
    b"",
    b"text",
    b"0x7fffffffffff",
    b"1e300",
    b"\xff\x00",
]
"""Values of fields, none of which anybody of a fleet would write."""


def now() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


def keys_of(client: Any) -> dict[str, bytes]:
    """Return the keys of the fleet's limiter by what they hold."""
    return {key.decode().rpartition(":")[2]: key for key in client.keys("*}:*")}


def write_other_type(client: Any, key: bytes) -> None:
    """Put something of another type under a key."""
    other = client.rpush if client.type(key) == b"hash" else client.hset
    client.delete(key)
    other(key, "x", *(("y",) if other == client.hset else ()))


def ways_to_spoil(client: Any) -> Iterator[Callable[[], object]]:
    """Return what spoils a value of the limiter's, one after the other."""
    keys = keys_of(client)
    for key in keys.values():
        yield partial(write_other_type, client, key)
        yield partial(client.delete, key)
    for field in client.hkeys(keys["pace"]):
        for value in STRANGE:
            text = value if isinstance(value, bytes) else str(value)
            yield partial(client.hset, keys["pace"], field, text)
        yield partial(client.hdel, keys["pace"], field)
    for member in client.hkeys(keys["members"]):
        for text in ("", "text", "1 2", "-1 0 0", "99999999999999999999 1 1", "1 1 999999999999"):
            yield partial(client.hset, keys["members"], member, text)
    for slot in ("text", "0", "-1", "9" * 18, "inf"):
        for score in (10**15, 10**18, float("inf")):
            yield partial(client.zadd, keys["pace"].replace(b"pace", b"returned"), {slot: score})


@pytest.mark.fault(52)
@virtual_time
async def test_no_value_in_the_store_stops_or_speeds_a_fleet(engine_server: EngineServer) -> None:
    """Each field with what it cannot be, each key of another type or gone, while calls run."""
    fleet = Fleet(engine_server, 3)
    try:
        await fleet.rush(20, 20, 20)
        with engine_server.client() as client:
            spoiled = 0
            for spoil in ways_to_spoil(client):
                await asyncio.sleep(0.3)
                spoil()
                spoiled += 1
                start = now()
                await fleet.rush(8, 8, 8)
                assert now() - start <= 24 / 198 + 1.0, spoiled
        assert spoiled > 200
        assert fleet.most_in_a_second() <= 200
        assert 0 < sum(limiter._engine.rejected for limiter in fleet.limiters)
    finally:
        await fleet.aclose()


@pytest.mark.fault(53)
@pytest.mark.parametrize("behind", [0.2, 5.0, 30.0, 59.0, 61.0, 3_600.0])
@virtual_time
async def test_a_clock_that_goes_back_stops_nobody(
    engine_server: EngineServer, behind: float
) -> None:
    """After a failover to a clock that is behind, a fleet goes on at its pace, and learns."""
    fleet = Fleet(engine_server, 3)
    try:
        await fleet.rush(100, 100, 100)
        for limiter in fleet.limiters:
            limiter._engine.behind = behind  # type: ignore[attr-defined]  # a DistantEngine
        start = now()
        await fleet.rush(200, 200, 200)
        assert now() - start <= 600 / 198 + 1.0
        assert fleet.most_in_a_second() <= 200
        reservation = fleet.limiters[0].reserve()
        await use_permit(reservation)
        for _ in range(100):
            reservation.throttled()
        await fleet.rush(100, 0, 0)
        await asyncio.sleep(0.3)
        await fleet.rush(1, 1, 1)
        assert fleet.limiters[1].rate < 190
        assert 3 == fleet.limiters[0].members
    finally:
        await fleet.aclose()


@pytest.mark.fault(52)
async def test_keys_of_another_type_cost_no_token(
    open_service: OpenService, engine_server: EngineServer
) -> None:
    """Whatever stands under the names of a fleet's keys: calls are served, and it stays one."""
    events: list[Event] = []
    tier = RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=5.0)
    tokens = open_service(shared=tier, observers=[events.append])
    for number in range(3):
        await tokens.issue(TokenRequest(ROOM, "u"), idempotency_key=f"{number}")
    tokens.invalidate(user="other")
    await tokens.prewarm([TokenRequest(ROOM, "prewarmed")])
    with engine_server.client() as client:
        for key in client.keys("*"):
            write_other_type(client, key)
    for number in range(3):
        request = TokenRequest(ROOM, "u")
        assert await tokens.issue(request, idempotency_key=f"{number}", timeout=30.0)
        assert await tokens.issue(request, fresh=True, timeout=30.0)
    tokens.invalidate(user="u")
    assert await tokens.issue(TokenRequest(ROOM, "prewarmed"), timeout=30.0)
    states = [event.state for event in events if isinstance(event, SharedChanged)]
    assert ["shared"] == states


@pytest.mark.fault(54)
async def test_a_script_that_is_always_refused_opens_the_breaker_once(
    open_service: OpenService, tmp_path: Path
) -> None:
    """A probe does what calls do: where TIME is refused the fleet stays apart, with one event."""
    with EngineServer(tmp_path) as server:
        with server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "short", "on", ">pw", "~*", "&*", "+@all", "-time"
            )
        events: list[Event] = []
        url = server.url.replace("redis://", "redis://short:pw@")
        tokens = open_service(
            shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0),
            observers=[events.append],
            quota=Quota(rate=50),
        )
        calls = (tokens.issue(TokenRequest(ROOM, f"u{number}")) for number in range(40))
        assert not [one for one in await outcomes(*calls) if isinstance(one, Exception)]
        before = server.script_calls()
        await asyncio.sleep(2.0)
        # A probe takes a few calls; there are at most eight in two seconds.
        assert server.script_calls() - before <= 8 * 8
        states = [event.state for event in events if isinstance(event, SharedChanged)]
        # It is not shared before the first message is heard, for which there may be no time.
        assert states in (["shared", "local"], ["local"])


@pytest.mark.fault(55)
async def test_every_key_has_a_life_from_its_first_write(
    open_service: OpenService, engine_server: EngineServer
) -> None:
    """After calls of every kind, no key lives longer than 15 minutes beyond the last of them."""
    tokens = open_service(shared=RedisTier(engine_server.url, keys=[SEALING_KEY], timeout=5.0))
    request = TokenRequest(ROOM, "u")
    with engine_server.client() as client:

        def lives() -> list[int]:
            return [client.ttl(key) for key in client.keys("*")]

        for call in (
            lambda: tokens.issue(request),
            lambda: tokens.issue(request, idempotency_key="k"),
            lambda: tokens.issue(request, fresh=True),
            lambda: tokens.prewarm([TokenRequest(ROOM, "other")]),
        ):
            await call()
            assert lives()
            assert all(-2 == life or 0 <= life <= 900 for life in lives())
        tokens.invalidate(user="u")
        await tokens.issue(request)
        assert all(-2 == life or 0 <= life <= 900 for life in lives())


@pytest.mark.fault(56)
async def test_an_engine_that_is_silent_delays_the_first_token_by_less_than_a_second(
    open_service: OpenService, ivschat_emulator: ThreadedEmulatorServer
) -> None:
    """It takes connections and says nothing: calls are then paced here, with a word of warning."""
    tokens = open_service()
    await tokens.issue(TokenRequest(ROOM, "warm"))

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    tier = RedisTier(f"redis://127.0.0.1:{port}", keys=[SEALING_KEY])
    async with open_service(shared=tier) as fleet:
        started = time.monotonic()
        await fleet.issue(TokenRequest(ROOM, "first"))
        # Far from the ten seconds of a start value taken for a measurement.
        assert time.monotonic() - started < 5.0
    silent.close()
