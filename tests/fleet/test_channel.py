"""Silence of the fleet's channel is not peace: who hears nothing knows it, and asks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
import valkey.asyncio

from aioivschat import (
    AsyncTokenService,
    Event,
    Invalidated,
    SharedChanged,
    SharedState,
    TokenRequest,
)
from aioivschat.redis import RedisTier
from support.engine import EngineServer, cluster
from support.fault_proxy import End, FaultProxy
from support.services import ROOM, SEALING_KEY, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")
SHARED, POLLING, LOCAL = SharedState.SHARED, SharedState.POLLING, SharedState.LOCAL
CHANNEL = "aioivschat:events"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EngineServer]:
    """A server whose users and connections are the test's."""
    with EngineServer(tmp_path) as engine:
        yield engine


def told(events: list[Event]) -> list[tuple[SharedState, str]]:
    """Return the changes of what is shared."""
    return [(each.state, each.reason) for each in events if isinstance(each, SharedChanged)]


def last(events: list[Event]) -> SharedState | None:
    """Return what is shared now."""
    return told(events)[-1][0] if told(events) else None


async def hold(member: AsyncTokenService) -> None:
    """Have a member hold alice's token."""
    await member.issue(REQUEST)
    assert member.ready(REQUEST) is not None


async def ban(here: AsyncTokenService, there: AsyncTokenService) -> float:
    """Ban alice here; return the seconds until it holds there."""
    if there.ready(REQUEST) is None:
        await hold(there)
    started = time.perf_counter()
    here.invalidate(user="alice")
    await until(lambda: there.ready(REQUEST) is None)
    return time.perf_counter() - started


def set_rights(server: EngineServer, *rights: str) -> str:
    """Give the user `poor` all rights, and take some; return the URL for it."""
    with server.client() as client:
        every = "ACL SETUSER poor on nopass ~* resetchannels &aioivschat:* +@all"
        client.execute_command(*every.split(), *rights)
    return server.url.replace("//", "//poor:any@")


LACKING = {
    "-subscribe": ("-subscribe", "no right to SUBSCRIBE"),
    "no channel": ("resetchannels", "no right to the channel"),
    "-publish": ("-publish", "no right to PUBLISH"),
}


@pytest.mark.fault(60)
@pytest.mark.parametrize("lacking", list(LACKING))
async def test_who_may_not_hear_is_not_shared_and_asks(
    open_service: OpenService,
    server: EngineServer,
    lacking: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is told, once, with the right that is lacking; a ban holds within a second or so."""
    rule, reason = LACKING[lacking]
    events: list[Event] = []
    url = set_rights(server, rule)
    here, there = (
        open_service(shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=observers)
        for observers in ([], [events.append])
    )
    caplog.set_level(logging.WARNING, "aioivschat")
    await hold(there)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: last(events) is POLLING)
    assert min([await ban(here, there) for _ in range(3)]) < 1.5
    assert [(POLLING, reason)] == told(events)
    said = [record.getMessage() for record in caplog.records if "polled" in record.getMessage()]
    assert 2 == len(said)  # one of each process
    assert all(reason in text for text in said)
    set_rights(server)
    await until(lambda: last(events) is SHARED, within=20.0)
    assert [(POLLING, reason), (SHARED, "connected")] == told(events)
    assert min([await ban(here, there) for _ in range(3)]) < 1.0


@pytest.mark.fault(60)
async def test_a_right_that_is_taken_away_is_missed_within_seconds(
    open_service: OpenService, server: EngineServer
) -> None:
    """The engine closes the subscription, and the next one is refused."""
    events: list[Event] = []
    here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
    url = set_rights(server)
    there = open_service(
        shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[events.append]
    )
    await hold(there)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: last(events) is SHARED)
    started = time.perf_counter()
    set_rights(server, "-subscribe")
    with server.client() as client:
        client.client_kill_filter(_type="pubsub")
    await until(lambda: last(events) is POLLING)
    assert time.perf_counter() - started < 8.0
    assert await ban(here, there) < 5.0
    assert [SHARED, POLLING] == [state for state, _ in told(events)]


@pytest.mark.fault(60)
@pytest.mark.parametrize("kind", ["URL", "own client", "decoding", "timeouts", "valkey-py"])
async def test_a_subscription_that_died_without_a_word_is_missed(
    open_service: OpenService, server: EngineServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As behind a NAT: no end arrives, and no message. Within 5 s the process asks by itself."""
    events: list[Event] = []
    caplog.set_level(logging.WARNING, "aioivschat")
    async with FaultProxy(server.url) as proxy:
        own: Any = None
        match kind:
            case "own client":
                own = redis.asyncio.Redis(port=proxy.port)
            case "decoding":
                own = redis.asyncio.Redis(port=proxy.port, decode_responses=True)
            case "timeouts":
                own = redis.asyncio.Redis(port=proxy.port, socket_timeout=1.0)
            case "valkey-py":
                own = valkey.asyncio.Valkey(port=proxy.port)
        here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
        there = open_service(
            shared=RedisTier(own or proxy.url, keys=[SEALING_KEY], timeout=5.0),
            observers=[events.append],
        )
        await hold(there)
        await here.issue(TokenRequest(ROOM, "bob"))
        await until(lambda: last(events) is SHARED)
        proxy.muted = b"SUBSCRIBE"
        started = time.perf_counter()
        assert await ban(here, there) < 5.0
        await until(lambda: last(events) is POLLING)
        assert time.perf_counter() - started < 8.0
        assert await ban(here, there) < 5.0
        proxy.muted = b""
        await until(lambda: last(events) is SHARED, within=20.0)
        assert min([await ban(here, there) for _ in range(3)]) < 1.0
        assert [SHARED, POLLING, SHARED] == [state for state, _ in told(events)]
        assert 1 == sum("polled" in record.getMessage() for record in caplog.records)
        await there.aclose()
        if own is not None:
            await own.aclose()


@pytest.mark.fault(60)
async def test_a_ban_holds_soon_after_all_connections_died_without_a_word(
    open_service: OpenService, server: EngineServer
) -> None:
    """A process without calls finds it out by its beat, and connects anew."""
    events: list[Event] = []
    async with FaultProxy(server.url) as proxy:
        here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
        there = open_service(
            shared=RedisTier(proxy.url, keys=[SEALING_KEY], timeout=0.5), observers=[events.append]
        )
        await hold(there)
        await here.issue(TokenRequest(ROOM, "bob"))
        await until(lambda: last(events) is SHARED)
        for way in ("up", "down"):
            proxy.end(End.BLACK_HOLE, way)
        await ban(here, there)
        await until(lambda: last(events) is SHARED)
        assert min([await ban(here, there) for _ in range(3)]) < 1.0
        assert [SHARED, LOCAL, SHARED] == [state for state, _ in told(events)]
        await there.aclose()


@pytest.mark.fault(60)
async def test_an_engine_without_messages_is_polled(
    open_service: OpenService, tmp_path: Path
) -> None:
    """Where SUBSCRIBE is no command, the fleet shares all the same."""
    events: list[Event] = []
    with EngineServer(tmp_path, rename_command="SUBSCRIBE none") as server:
        tier = RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0)
        here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
        there = open_service(shared=tier, observers=[events.append])
        first = await there.issue(REQUEST)
        assert first.token == (await here.issue(REQUEST)).token
        await until(lambda: last(events) is POLLING)
        assert await ban(here, there) < 5.0
        for member in (here, there):
            await member.aclose()


@pytest.mark.fault(60)
async def test_a_ban_that_could_not_be_published_is_found(
    open_service: OpenService, server: EngineServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the process that bans may not PUBLISH: it is stored, and others find its number."""
    events: list[Event] = []
    caplog.set_level(logging.WARNING, "aioivschat")
    here, there, third = (
        open_service(
            shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[events.append]
        )
        for url in (set_rights(server, "-publish"), server.url, server.url)
    )
    await hold(there)
    await hold(third)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: [SHARED] * 3 == [state for state, _ in told(events)])
    # All three hear the beats of two.
    await asyncio.sleep(7.0)
    assert await ban(here, there) < 5.0
    await until(lambda: third.ready(REQUEST) is None)
    # A claim learns of it at once.
    await hold(there)
    here.invalidate(user="alice")
    with server.client() as client:
        await until(lambda: 2 == client.zcard("{aioivschat}:log"))
    await there.issue(TokenRequest(ROOM, "carol"))
    await until(lambda: there.ready(REQUEST) is None, within=1.0)
    said = [record.getMessage() for record in caplog.records]
    assert 1 == sum("not published (no right to PUBLISH)" in text for text in said)
    assert [SHARED] * 3 == [state for state, _ in told(events)]


@pytest.mark.fault(60)
async def test_a_ban_after_the_clock_went_back_is_found(
    open_service: OpenService, server: EngineServer
) -> None:
    """The log's numbers grow all the same; one that began anew is read as a whole."""
    events: list[Event] = []
    url = set_rights(server, "-subscribe")
    here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
    there = open_service(
        shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[events.append]
    )
    await hold(there)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: last(events) is POLLING)
    assert await ban(here, there) < 5.0
    with server.client() as client:
        for ahead in (60.0, 3_600.0, float("inf")):
            client.zincrby(
                "{aioivschat}:log", ahead * 1e6, client.zrange("{aioivschat}:log", -1, -1)[0]
            )
            assert await ban(here, there) < 5.0
        client.delete("{aioivschat}:log")
        assert await ban(here, there) < 5.0
        client.set("{aioivschat}:log", "text")
        assert await ban(here, there) < 5.0


@pytest.mark.fault(60)
async def test_a_long_log_is_read_in_parts(open_service: OpenService, server: EngineServer) -> None:
    """A process that was away for 2,500 bans applies them all, each once."""
    events: list[Event] = []
    url = set_rights(server)
    here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY], timeout=5.0))
    there = open_service(
        shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[events.append]
    )
    await hold(there)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: last(events) is SHARED)
    set_rights(server, "-eval", "-evalsha", "-subscribe")
    with server.client() as client:
        client.client_kill_filter(_type="pubsub")
        while last(events) is not LOCAL:
            await there.issue(TokenRequest(ROOM, "bob"), fresh=True)
        for number in range(2_499):
            here.invalidate(user=f"user {number}")
        here.invalidate(user="alice")
        await until(lambda: 2_500 == client.zcard("{aioivschat}:log"), within=60.0)
        assert there.ready(REQUEST) is not None
        set_rights(server)
        await until(lambda: there.ready(REQUEST) is None, within=20.0)
        await until(lambda: last(events) is SHARED)
    assert 2_500 == sum(isinstance(event, Invalidated) for event in events)


@pytest.mark.fault(60)
async def test_messages_of_anybody_change_nothing(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """What does not open is counted; numbers that nobody gave are found out."""
    events: list[Event] = []
    here, there = open_member(), open_member(observers=[events.append])
    await hold(there)
    await here.issue(TokenRequest(ROOM, "bob"))
    await until(lambda: last(events) is SHARED)
    with engine_server.client() as client:
        for text in ("", ":", "fence", "fence:", "fence:1", "fence:1 2 3", "fence:x y z", "alive:"):
            client.publish(CHANNEL, text)
        for number in ("x", "-1", "9" * 5_000, "9" * 18, "0", "\x00"):
            client.publish(CHANNEL, f"alive:{number}")
    await until(lambda: there.stats().rejected >= 4)
    assert min([await ban(here, there) for _ in range(3)]) < 1.0
    assert [SHARED] == [state for state, _ in told(events)]


@pytest.mark.fault(60)
async def test_a_cluster_is_heard_at_any_node(open_service: OpenService, tmp_path: Path) -> None:
    """Beats and bans pass between nodes; one that is cut off is missed."""
    events: list[Event] = []
    with cluster(tmp_path) as nodes:
        url = f"redis+cluster://{nodes[0].address}"
        here, there = (
            open_service(
                shared=RedisTier(url, keys=[SEALING_KEY], timeout=5.0), observers=[events.append]
            )
            for _ in range(2)
        )
        await hold(there)
        await here.issue(TokenRequest(ROOM, "bob"))
        await until(lambda: [SHARED] * 2 == [state for state, _ in told(events)])
        await asyncio.sleep(3.5)
        assert min([await ban(here, there) for _ in range(3)]) < 1.0
        for member in (here, there):
            await member.aclose()
    assert [SHARED] * 2 == [state for state, _ in told(events)]


@pytest.mark.fault(60)
async def test_the_beats_of_one_serve_a_fleet(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """Ten processes without calls beat about as often as one, and hear each other."""
    events: list[Event] = []
    members = [open_member(observers=[events.append]) for _ in range(10)]
    for member in members:
        await member.issue(REQUEST)
    await until(lambda: 10 == len(told(events)))
    before, started = engine_server.script_calls(), time.monotonic()
    await asyncio.sleep(7.0)
    calls = engine_server.script_calls() - before
    assert 2 <= calls <= 2 * (time.monotonic() - started)
    assert [SHARED] * 10 == [state for state, _ in told(events)]


@pytest.mark.fault(60)
async def test_a_fleet_that_shares_its_quota_only_does_not_beat(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """Without a sealing key there is nothing to be told."""
    events: list[Event] = []
    member = open_member(keys=[], observers=[events.append])
    await member.issue(REQUEST)
    await until(lambda: bool(told(events)))
    await asyncio.sleep(0.3)
    before = engine_server.script_calls()
    await asyncio.sleep(4.0)
    assert before == engine_server.script_calls()
    assert [SharedState.QUOTA_ONLY] == [state for state, _ in told(events)]
