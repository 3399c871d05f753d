"""The limiter while the engine goes away and comes back: all are served, the quota is kept."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from aioivschat import (
    AttemptFailed,
    Clock,
    Event,
    Minted,
    Quota,
    SharedChanged,
    SharedState,
    TokenRequest,
)
from aioivschat.emulator import ThreadedEmulatorServer
from aioivschat.redis._engine import Engine
from aioivschat.redis._limiter import SharedLimiter
from support.distant import Fleet
from support.engine import EngineServer
from support.permits import use_permit
from support.services import ROOM, OpenService, until
from support.virtual import VirtualClock, virtual_time

RATE = 200


def busiest_second(times: list[float]) -> int:
    """Return the largest number of times in any one second."""
    times = sorted(times)
    return max(bisect_left(times, moment + 1) - at for at, moment in enumerate(times))


@asynccontextmanager
async def limiters(
    server: EngineServer, processes: int, **options: Any
) -> AsyncIterator[list[SharedLimiter]]:
    """Run the limiters of a fleet, each with its own connections to the server."""
    engines = [Engine(server.url) for _ in range(processes)]
    made = [SharedLimiter(each, "fleet", Quota(), Clock(), **options) for each in engines]
    yield made
    for limiter in made:
        await limiter.aclose()
    for engine in engines:
        await engine.aclose()


@pytest.mark.fault(22)
async def test_a_killed_engine_costs_nobody_an_error_and_the_quota_is_kept(
    open_member: OpenService,
    ivschat_emulator: ThreadedEmulatorServer,
    engine_server: EngineServer,
) -> None:
    """The engine is killed while three processes serve a crowd: each goes on with a third of the
    quota; after the engine's start all share again within five seconds, and no call fails.
    """
    sent: list[float] = []
    requests: list[list[float]] = [[], [], []]
    states: list[list[SharedState]] = [[], [], []]

    def observe(process: int, event: Event) -> None:
        if isinstance(event, Minted | AttemptFailed):
            sent.append(time.monotonic() - event.seconds)
            requests[process].append(sent[-1])
        elif isinstance(event, SharedChanged):
            states[process].append(event.state)

    members = [
        open_member(quota=Quota(), observers=[lambda event, at=at: observe(at, event)])
        for at in range(3)
    ]
    crowd = [
        asyncio.create_task(member.issue(TokenRequest(ROOM, f"{at} {number}")))
        for at, member in enumerate(members)
        for number in range(400)
    ]
    await until(lambda: len(sent) > 150)
    engine_server.kill()
    await until(lambda: all(told[-1:] == [SharedState.LOCAL] for told in states))
    alone = time.monotonic()
    await asyncio.sleep(2)
    engine_server.start()
    await until(lambda: all(told[-1:] == [SharedState.SHARED] for told in states), within=5.0)
    tokens = await asyncio.gather(*crowd)
    assert 3 * 400 == len({token.token for token in tokens})
    for moments in requests:
        assert 0 < sum(alone + 0.5 <= moment < alone + 1.5 for moment in moments) <= RATE / 3
    assert busiest_second(sent) <= 1.1 * RATE


@pytest.mark.parametrize("wait", [0.0, 0.3])
async def test_each_takes_its_part_while_the_engine_is_away(
    engine_server: EngineServer, wait: float
) -> None:
    """Without the engine, a process takes the quota divided by the members it last knew of."""
    async with limiters(engine_server, 4) as fleet:
        for _ in range(2):
            for limiter in fleet:
                await use_permit(limiter.reserve())
        with engine_server.stopped():
            await asyncio.sleep(wait)
            await use_permit(fleet[0].reserve())
            assert not fleet[0].shared
            assert 0.98 * RATE / 4 == pytest.approx(fleet[0].rate)
            assert fleet[0].predicted_wait() < 0.1


async def test_without_an_engine_from_the_start_the_option_says_how_many_share(
    engine_server: EngineServer,
) -> None:
    """A process that never reached the engine divides the quota by its option `members`."""
    engine_server.kill()
    try:
        async with limiters(engine_server, 1, members=8) as (limiter,):
            await use_permit(limiter.reserve())
            assert 0.98 * RATE / 8 == pytest.approx(limiter.rate)
    finally:
        engine_server.start()


@virtual_time
async def test_an_outage_keeps_the_order_of_those_that_wait(engine_server: EngineServer) -> None:
    """Callers are served in their order before, in and after an outage, and may leave in it."""
    fleet = Fleet(engine_server, 2)
    limiter, order = fleet.limiters[0], []

    async def one(number: int) -> None:
        await use_permit(limiter.reserve())
        order.append(number)

    callers = [asyncio.create_task(one(number)) for number in range(400)]
    callers += [asyncio.create_task(fleet.send_one(1)) for _ in range(100)]
    await asyncio.sleep(0.5)
    for engine in fleet.engines:
        engine.stop_answering()
    await asyncio.sleep(0.5)
    assert [False, False] == [each.shared for each in fleet.limiters]
    for caller in callers[380:400]:
        caller.cancel()
    await asyncio.sleep(0.5)
    for engine in fleet.engines:
        engine.come_back()
    assert [False, False] == [each.shared for each in fleet.limiters]
    await asyncio.sleep(1.6)
    assert [True, True] == [each.shared for each in fleet.limiters]
    await asyncio.wait(callers)
    assert list(range(380)) == order
    await fleet.aclose()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("processes", [2, 4, 50])
@virtual_time
async def test_the_fleet_keeps_the_quota_through_every_change(
    engine_server: EngineServer, processes: int, seed: int
) -> None:
    """The fleet stays within 3 % of the quota, though each process notices the engine's absence
    and return at its own moment.
    """
    fleet = Fleet(engine_server, processes, seed=seed)
    loop = asyncio.get_running_loop()
    start = loop.time()
    crowd = asyncio.create_task(fleet.rush(*[2_000 // processes] * processes))
    await asyncio.sleep(3)
    for engine in fleet.engines:
        engine.stop_answering()
    await asyncio.sleep(3)

    async def find(at: int) -> None:
        await asyncio.sleep(fleet.rng.uniform(0, 0.8))
        fleet.engines[at].come_back()

    fleet.client.flushall()  # as after a restart
    await asyncio.gather(*(find(at) for at in range(processes)))
    await asyncio.sleep(5 - 0.8)
    assert all(limiter.shared for limiter in fleet.limiters)
    await crowd
    assert loop.time() - start <= 1.3 * 2_000 / RATE
    assert fleet.most_in_a_second() <= 1.03 * RATE
    await fleet.aclose()


@virtual_time
async def test_one_that_cannot_reach_the_engine_adds_only_its_part(
    engine_server: EngineServer,
) -> None:
    """One of ten that cannot reach the engine takes its tenth beside what the others share."""
    fleet = Fleet(engine_server, 10)
    crowd = asyncio.create_task(fleet.rush(*[200] * 10))
    await asyncio.sleep(3)
    fleet.engines[0].stop_answering()
    await crowd
    assert fleet.most_in_a_second() <= (1 + 1 / 10) * RATE
    await fleet.aclose()


@virtual_time
async def test_without_the_engine_a_process_learns_from_throttles(
    engine_server: EngineServer,
) -> None:
    """Without the engine, throttles bring the rate of the process down, and answers up again."""
    limiter = SharedLimiter(
        engine := Fleet(engine_server, 1).engines[0], "fleet", Quota(), VirtualClock(), members=2
    )
    engine.go_away()
    for _ in range(50):
        reservation = limiter.reserve()
        await use_permit(reservation)
        await asyncio.sleep(0.01)
        reservation.throttled()
    assert limiter.rate < 20
    for _ in range(50):
        reservation = limiter.reserve()
        await use_permit(reservation)
        reservation.served()
    assert limiter.rate > 60
    await limiter.aclose()


async def test_closing_gives_slots_back(engine_server: EngineServer) -> None:
    """A process that closes leaves the fleet, and its unused slots go to others."""
    async with limiters(engine_server, 2) as (here, there):
        await asyncio.gather(use_permit(here.reserve()), use_permit(there.reserve()))
        waiting = [here.reserve() for _ in range(30)]
        await until(lambda: waiting[0].expected > 0 and here.waiting < 30)
        await here.aclose()
        await use_permit(there.reserve())
        assert 1 == there.members
        with engine_server.client() as client:
            assert client.zcard("{fleet}:returned") > 10


async def test_a_connection_that_was_cut_is_no_outage(engine_server: EngineServer) -> None:
    """A single failure leaves the breaker closed, and who waits is served."""
    async with limiters(engine_server, 1) as (limiter,):
        await use_permit(limiter.reserve())
        with engine_server.client() as client:
            client.client_kill_filter(skipme=True, _type="normal")
        await use_permit(limiter.reserve())
        assert limiter.shared


@virtual_time
async def test_a_process_that_never_reached_the_engine_starts_at_once(
    engine_server: EngineServer,
) -> None:
    """Its first permit comes within the first spacing of its part of the quota, not later."""
    fleet = Fleet(engine_server, 1)
    fleet.engines[0].go_away()
    started = asyncio.get_running_loop().time()
    await fleet.send_one(0)
    assert asyncio.get_running_loop().time() - started <= 0.1
    await fleet.aclose()


@virtual_time
async def test_callers_that_left_before_an_outage_stop_nobody_after_it(
    engine_server: EngineServer,
) -> None:
    """All who wait for a slot leave, then the engine goes away: the next caller is served."""
    fleet = Fleet(engine_server, 1)
    await fleet.rush(5)
    leaving = [asyncio.create_task(fleet.send_one(0)) for _ in range(30)]
    await asyncio.sleep(0.02)
    for task in leaving:
        task.cancel()
    await asyncio.sleep(0)
    fleet.engines[0].go_away()
    async with asyncio.timeout(10):
        await use_permit(fleet.limiters[0].reserve())
    await fleet.aclose()
