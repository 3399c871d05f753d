"""Invalidation reaches every process: by message at once, or by log and fence if that is missed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from aioivschat import (
    Event,
    Invalidated,
    ServiceClosed,
    SharedState,
    TokenRequest,
    WrongLoop,
)
from aioivschat.emulator import Fault, FaultKind, ThreadedEmulatorServer
from aioivschat.redis import RedisTier
from support.engine import EngineServer
from support.services import ROOM, SEALING_KEY, OpenService, until

REQUEST = TokenRequest(ROOM, "alice")
OTHER_ROOM = ROOM[:-1] + "x"

WHAT = [{"room": ROOM}, {"user": "alice"}, {"room": ROOM, "user": "alice"}]


async def _listening(server: EngineServer, members: int) -> None:
    with server.client() as client:
        await until(lambda: members == client.pubsub_numsub("aioivschat:events")[0][1])


@pytest.mark.parametrize("what", WHAT, ids=["room", "user", "both"])
async def test_every_process_forgets(
    open_member: OpenService, engine_server: EngineServer, what: dict[str, str]
) -> None:
    """All processes forget delivered and stocked tokens, their own and those in the engine."""
    events: list[Event] = []
    here, there = open_member(), open_member(observers=[events.append])
    first = await here.issue(REQUEST)
    assert first.token == (await there.issue(REQUEST)).token
    await here.prewarm([REQUEST])
    await _listening(engine_server, 2)
    here.invalidate(**what)
    await until(lambda: any(isinstance(event, Invalidated) for event in events))
    assert [Invalidated(what.get("room"), "user" in what)] == [
        event for event in events if isinstance(event, Invalidated)
    ]
    second = await there.issue(REQUEST)
    assert (False, 0) == (second.reused, there.stats().shared - 1)
    assert second.token == (await here.issue(REQUEST)).token != first.token


async def test_an_invalidation_takes_less_than_a_tenth_of_a_second(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """Five processes apply an invalidation within 0.1 s, in the fastest of ten cases."""
    heard: list[float] = []

    def note(event: Event) -> None:
        if isinstance(event, Invalidated):
            heard.append(time.perf_counter())

    here = open_member()
    others = [open_member(observers=[note]) for _ in range(5)]
    for member in (here, *others):
        await member.issue(REQUEST)
    await _listening(engine_server, 6)
    took = []
    for number in range(1, 11):
        started = time.perf_counter()
        here.invalidate(room=ROOM)
        await until(lambda number=number: len(heard) == 5 * number)  # type: ignore[misc]  # a loop's
        took.append(heard[-1] - started)
    assert min(took) < 0.1


async def test_tokens_of_others_are_kept(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """Another user in the room, and the same user in another room, keep their tokens."""
    here, there = open_member(), open_member()
    kept = [TokenRequest(ROOM, "bob"), TokenRequest(OTHER_ROOM, "alice")]
    before = [await here.issue(request) for request in kept]
    await there.issue(REQUEST)
    await _listening(engine_server, 2)
    here.invalidate(room=ROOM, user="alice")
    await until(lambda: there.ready(REQUEST) is None)
    after = [await there.issue(request) for request in kept]
    assert [token.token for token in before] == [token.token for token in after]


@pytest.mark.fault(25)
async def test_a_process_that_missed_the_message_applies_the_log(
    open_member: OpenService, engine_server: EngineServer
) -> None:
    """A process that missed a message reads the log when it listens again."""
    events: list[Event] = []
    here, there = open_member(), open_member(observers=[events.append])
    first = await here.issue(REQUEST)
    assert first.token == (await there.issue(REQUEST)).token
    await _listening(engine_server, 2)
    with engine_server.client() as client:
        client.client_kill_filter(_type="pubsub")
        here.invalidate(user="alice")
        await until(lambda: bool(client.exists("{aioivschat}:log")))
    assert first.token != (await open_member().issue(REQUEST)).token
    await until(lambda: any(isinstance(event, Invalidated) for event in events))
    assert first.token != (await there.issue(REQUEST)).token


async def test_a_flight_under_way_anywhere_is_fenced(
    open_member: OpenService, ivschat_emulator: ThreadedEmulatorServer, engine_server: EngineServer
) -> None:
    """A flight under way serves those who wait for it, and its token goes to nobody else."""
    here, there = open_member(), open_member()
    await here.issue(TokenRequest(ROOM, "bob"))
    await there.issue(TokenRequest(ROOM, "carol"))
    await _listening(engine_server, 2)
    ivschat_emulator.emulator.fail_next(Fault(FaultKind.SLOW, latency=0.3))
    call = asyncio.create_task(there.issue(REQUEST))
    await until(lambda: ivschat_emulator.emulator.counts().requests == 3)
    here.invalidate(user="alice")
    first = await call
    assert first.token != (await here.issue(REQUEST)).token
    assert first.token != (await there.issue(REQUEST)).token


@pytest.mark.fault(25)
async def test_the_log_is_read_until_the_engine_answers(
    open_service: OpenService, tmp_path: Path
) -> None:
    """If messages are back before scripts are, the log is read once scripts run again."""
    events: list[Event] = []
    with EngineServer(tmp_path) as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "there", "on", "nopass", "~*", "&*", "+@all")
        url = server.url.replace("//", "//there:any@")
        here = open_service(shared=RedisTier(server.url, keys=[SEALING_KEY]))
        there = open_service(shared=RedisTier(url, keys=[SEALING_KEY]), observers=[events.append])
        await there.issue(REQUEST)
        await here.issue(TokenRequest(ROOM, "somebody"))
        await _listening(server, 2)
        client.execute_command("ACL", "SETUSER", "there", "-eval", "-evalsha")
        while not any(getattr(event, "state", None) is SharedState.LOCAL for event in events):
            await there.issue(TokenRequest(ROOM, "somebody"), fresh=True)
        client.client_kill_filter(_type="pubsub")
        here.invalidate(user="alice")
        await until(lambda: bool(client.exists("{aioivschat}:log")))
        await _listening(server, 2)
        assert there.ready(REQUEST) is not None
        client.execute_command("ACL", "SETUSER", "there", "+eval", "+evalsha")
        await until(lambda: there.ready(REQUEST) is None, within=20.0)
        await here.aclose()
        await there.aclose()


@pytest.mark.fault(38)
@pytest.mark.parametrize("what", WHAT, ids=["room", "user", "both"])
async def test_a_ban_by_a_thread_reaches_every_process(
    open_member: OpenService, engine_server: EngineServer, what: dict[str, str]
) -> None:
    """As a ``def`` route makes it, in a worker thread."""
    events: list[Event] = []
    here, there = open_member(), open_member(observers=[events.append])
    assert (await here.issue(REQUEST)).token == (await there.issue(REQUEST)).token
    await _listening(engine_server, 2)
    await asyncio.to_thread(lambda: here.invalidate(**what))
    assert here.ready(REQUEST) is None
    await until(lambda: any(isinstance(event, Invalidated) for event in events))
    assert there.ready(REQUEST) is None


@pytest.mark.fault(38)
async def test_a_ban_that_cannot_be_told_is_an_error_before_any_effect(
    open_member: OpenService,
) -> None:
    """A first use off the loop, a service that is closed: nobody would tell the fleet."""
    events: list[Event] = []
    unused, closed = open_member(observers=[events.append]), open_member(observers=[events.append])
    with pytest.raises(WrongLoop, match="run_coroutine_threadsafe"):
        await asyncio.to_thread(unused.invalidate, user="alice")
    await closed.issue(REQUEST)
    await closed.aclose()
    events.clear()
    with pytest.raises(ServiceClosed):
        closed.invalidate(user="alice")
    assert [] == events
