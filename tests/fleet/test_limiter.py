"""The limiter of a fleet in virtual time: one quota, in order, fairly, with few script calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest

from aioivschat import Clock, Priority, Quota
from aioivschat.emulator import QuotaShape
from aioivschat.redis._engine import Engine, EngineState
from aioivschat.redis._limiter import SharedLimiter
from support.distant import Fleet
from support.engine import EngineServer
from support.permits import use_permit
from support.services import until
from support.virtual import VirtualClock, settle, virtual_time

SHAPES = ["bucket:200:200", "bucket:200:20", "fixed:200", "sliding:200"]


def now() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def fleet_of(server: EngineServer, processes: int, **options: Any) -> AsyncIterator[Fleet]:
    """Run a fleet of processes and close it."""
    fleet = Fleet(server, processes, **options)
    try:
        yield fleet
    finally:
        await fleet.aclose()


def count_throttled(fleet: Fleet, shape: str) -> int:
    """Return how many of the requests sent a quota of that shape refuses."""
    meter = QuotaShape.parse(shape).meter()
    return sum(not meter.admit(time) for time, _ in fleet.sent)


@pytest.mark.parametrize("round_trip", [0.001, 0.03])
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
@virtual_time
async def test_a_rush_takes_as_long_as_the_quota_does(
    engine_server: EngineServer, processes: int, round_trip: float
) -> None:
    """Any number of processes serve a crowd at the rate of the quota, and no shape throttles it."""
    async with fleet_of(engine_server, processes, round_trip=round_trip) as fleet:
        start = now()
        await fleet.rush(*[2_000 // processes] * processes)
        assert now() - start <= 1.02 * 2_000 / 200
        assert fleet.most_in_a_second() <= 200
        assert [0, 0, 0, 0] == [count_throttled(fleet, shape) for shape in SHAPES]


@pytest.mark.fault(31)
@pytest.mark.parametrize("processes", [1, 4])
@virtual_time
async def test_connections_that_open_late_are_no_flood(
    engine_server: EngineServer, processes: int
) -> None:
    """Cold connections of 100 ms, and none at all for 2.5 s: requests wait for slots anew."""
    async with fleet_of(engine_server, processes, connect=lambda: 0.1) as fleet:
        start = now()
        await fleet.rush(*[1_000 // processes] * processes)
        assert now() - start <= 1_000 / 198 + 0.5
        assert fleet.most_in_a_second() <= 200
        assert [0, 0, 0, 0] == [count_throttled(fleet, shape) for shape in SHAPES]
    back = now() + 2.5
    async with fleet_of(engine_server, processes, connect=lambda: max(0.0, back - now())) as fleet:
        await fleet.rush(*[1_000 // processes] * processes)
        assert now() - back <= 1_000 / 198 + 0.5
        assert fleet.most_in_a_second() <= 200
        assert [0, 0, 0, 0] == [count_throttled(fleet, shape) for shape in SHAPES]


@pytest.mark.parametrize("has_slot", [False, True])
@virtual_time
async def test_who_leaves_while_late_takes_no_slot(
    engine_server: EngineServer, has_slot: bool
) -> None:
    """Cancelled while it waits for another slot, or in the moment that it got one."""
    async with fleet_of(engine_server, 1, quota=Quota(rate=1)) as fleet:
        limiter = fleet.limiters[0]
        late = limiter.reserve()
        await late.granted()
        await asyncio.sleep(0.5)  # its connection takes so long
        leaving = asyncio.create_task(late.spend())
        other = asyncio.create_task(fleet.send_one(0))
        await settle()
        start = now()
        if has_slot:
            limiter._late.popleft().set_result(None)
        leaving.cancel()
        await asyncio.wait((leaving,))
        late.release()
        await other
        assert leaving.cancelled()
        assert (now() - start < 0.1) == has_slot
        assert (0, 0, 0) == (limiter.waiting, len(limiter._late), limiter._connections._under_way)


@virtual_time
async def test_500_processes_10_ms_away_share_a_quota(engine_server: EngineServer) -> None:
    """500 processes share a quota with at most 60 script calls a second, after the first second."""
    async with fleet_of(engine_server, 500, round_trip=0.01) as fleet:
        start = now()
        await fleet.rush(*[16] * 500)
        assert now() - start <= 1.02 * 8_000 / 200
        assert fleet.most_in_a_second() <= 200
        assert fleet.calls(start + 1, now()) / (now() - start - 1) <= 60


@virtual_time
async def test_50_processes_cost_60_script_calls_a_second(engine_server: EngineServer) -> None:
    """50 processes make at most 60 script calls a second, for a crowd and for a steady stream."""
    async with fleet_of(engine_server, 50) as fleet:
        start = now()
        await fleet.rush(*[40] * 50)
        assert fleet.calls(start, now()) / (now() - start) <= 60
    async with fleet_of(engine_server, 50) as fleet:
        start = now()
        await fleet.trickle(200, 20)
        assert fleet.calls(start + 4, start + 20) / 16 <= 60


@virtual_time
async def test_below_the_quota_nobody_waits_for_long(engine_server: EngineServer) -> None:
    """At half the quota, 99 of 100 callers wait less than 50 ms."""
    async with fleet_of(engine_server, 50) as fleet:
        waits = sorted(await fleet.trickle(100, 20))
        assert waits[len(waits) * 99 // 100] < 0.05


@virtual_time
async def test_without_demand_there_are_no_calls_but_heartbeats(
    engine_server: EngineServer,
) -> None:
    """An idle process makes one call in about ten seconds, which keeps it a member."""
    async with fleet_of(engine_server, 4) as fleet:
        await fleet.rush(3, 3, 3, 3)
        start = now()
        await asyncio.sleep(100)
        assert 4 * 10 <= fleet.calls(start, now()) <= 4 * 13
        await fleet.rush(1)
        assert 4 == fleet.limiters[0].members


@pytest.mark.parametrize("crowds", [(500,) * 4, (800, 400, 200, 100)])
@virtual_time
async def test_each_process_gets_its_part_of_the_demand(
    engine_server: EngineServer, crowds: tuple[int, ...]
) -> None:
    """Each process gets slots in proportion to its crowd: halfway, each crowd is half served."""
    async with fleet_of(engine_server, 4) as fleet:
        await fleet.rush(*crowds)
        half = Counter(process for _, process in fleet.sent[: sum(crowds) // 2])
        for process, crowd in enumerate(crowds):
            assert crowd / 2 == pytest.approx(half[process], rel=0.2)


@pytest.mark.lazy_tasks
@virtual_time
async def test_a_crowd_keeps_nobody_waiting_at_other_processes(engine_server: EngineServer) -> None:
    """20 callers at other processes are served long before a crowd of 1,000 at one process."""
    async with fleet_of(engine_server, 4) as fleet:
        await fleet.rush(1_000, 20, 20, 20)
        half = Counter(process for _, process in fleet.sent[:530])
        assert 20 == half[1] == half[2] == half[3]


@virtual_time
async def test_first_in_first_out_within_a_process_and_urgent_first(
    engine_server: EngineServer,
) -> None:
    """Within a process callers are served by priority, then in order; a retry goes first."""
    async with fleet_of(engine_server, 2) as fleet:
        limiter, order = fleet.limiters[0], []

        async def one(name: str, priority: Priority, again: bool = False) -> None:
            await use_permit(limiter.reserve(priority, again=again))
            order.append(name)

        calls = [one(f"background {number}", Priority.BACKGROUND) for number in range(3)]
        calls += [one(f"normal {number}", Priority.NORMAL) for number in range(3)]
        calls.append(one("retry", Priority.NORMAL, again=True))
        promoted = limiter.reserve(Priority.BACKGROUND)
        promoted.promote(Priority.NORMAL)
        await asyncio.gather(*calls, fleet.rush(0, 100))
        await use_permit(promoted)
        assert ["retry", "normal 0", "normal 1", "normal 2"] == order[:4]
        assert ["background 0", "background 1", "background 2"] == order[4:]


@virtual_time
async def test_slots_of_callers_that_left_go_to_other_processes(
    engine_server: EngineServer,
) -> None:
    """Slots of callers that left are given to others before later ones, and none is used twice."""
    async with fleet_of(engine_server, 51, round_trip=0.01) as fleet:
        leaving = [asyncio.create_task(fleet.send_one(at)) for at in range(50) for _ in range(20)]
        await asyncio.sleep(0.1)
        for task in leaving:
            task.cancel()
        await asyncio.sleep(0.2)
        start, taken = now(), int(fleet.client.hget("{fleet}:pace", "next")) / 1e6
        assert taken > start + 0.5
        await fleet.rush(*[0] * 50, 20)
        assert now() < start + 0.3
        assert fleet.most_in_a_second() <= 200
        assert 0 == sum(limiter.waiting for limiter in fleet.limiters)


@virtual_time
async def test_a_granted_permit_that_is_released_goes_to_the_next(
    engine_server: EngineServer,
) -> None:
    """A permit that is released unused goes to the next caller of the same process."""
    async with fleet_of(engine_server, 1) as fleet:
        limiter = fleet.limiters[0]
        reservations = [limiter.reserve() for _ in range(2)]
        await asyncio.sleep(0.003)
        waiting = limiter.waiting
        reservations[0].release()
        await settle()
        assert (1, 0) == (waiting, limiter.waiting)
        await use_permit(reservations[1])


@virtual_time
async def test_the_fleet_follows_what_one_process_learns(engine_server: EngineServer) -> None:
    """Throttles at one process bring the whole fleet's rate down, and a rest brings it back."""
    told: list[tuple[float, int]] = []
    async with fleet_of(engine_server, 2) as fleet:
        other = SharedLimiter(
            fleet.engines[1],
            "fleet",
            Quota(),
            VirtualClock(),
            lambda rate, burst: told.append((rate, burst)),
            rng=fleet.rng,
        )
        await fleet.rush(1)
        reservation = fleet.limiters[0].reserve()
        await use_permit(reservation)
        for _ in range(100):
            reservation.throttled()
        reservation.served()
        await fleet.rush(1)
        await asyncio.sleep(1)
        await use_permit(other.reserve())
        assert 198.0 > other.rate == told[-1][0]
        # Two served of 102, and the probe: what LocalLimiter would learn.
        assert 198.0 * 4 / 104 + 0.05 * 198.0 == pytest.approx(other.rate, rel=0.2)
        await asyncio.sleep(10)
        await use_permit(other.reserve())
        assert 198.0 == other.rate == told[-1][0]
        await other.aclose()


@virtual_time
async def test_a_known_bucket_is_used_at_once_by_all_together(engine_server: EngineServer) -> None:
    """A fleet uses nine tenths of a known bucket at once, and nothing is throttled."""
    async with fleet_of(engine_server, 4, quota=Quota(burst=200)) as fleet:
        start = now()
        await fleet.rush(*[500] * 4)
        assert now() - start <= 9.3
        assert {(180, "bucket")} == {(each.burst, each.shape) for each in fleet.limiters}
        assert 0 == count_throttled(fleet, "bucket:200:200")


@pytest.mark.parametrize("rate", [0.5, 3.7, 1_000.0])
@virtual_time
async def test_any_rate_is_kept(engine_server: EngineServer, rate: float) -> None:
    """A fleet keeps rates below one a second, fractions and high rates."""
    async with fleet_of(engine_server, 3, quota=Quota(rate=rate)) as fleet:
        start = now()
        count = max(4, round(rate))
        await fleet.rush(*[count] * 3)
        assert (3 * count - 1) / rate == pytest.approx(now() - start, rel=0.03, abs=0.1)
        gaps = [later - sooner for (sooner, _), (later, _) in pairwise(sorted(fleet.sent))]
        assert min(gaps) >= 1 / rate * 0.98 - 0.003


@virtual_time
async def test_a_wait_is_predicted(engine_server: EngineServer) -> None:
    """A process predicts a wait to a fifth from what the engine answered last."""
    async with fleet_of(engine_server, 4) as fleet:
        crowd = asyncio.create_task(fleet.rush(*[250] * 4))
        await asyncio.sleep(0.5)
        limiter = fleet.limiters[0]
        predicted = limiter.predicted_wait()
        reservation = limiter.reserve()
        start = now()
        await use_permit(reservation)
        assert now() - start == pytest.approx(predicted, rel=0.2)
        assert start + predicted == pytest.approx(reservation.expected)
        await crowd
        assert limiter.predicted_wait() < 0.1


@virtual_time
async def test_the_limiter_is_full_while_as_many_wait_as_may(engine_server: EngineServer) -> None:
    """A fleet's limiter is full while `max_waiting` reservations wait."""
    async with fleet_of(engine_server, 1, quota=Quota(max_waiting=20)) as fleet:
        limiter: SharedLimiter = fleet.limiters[0]
        full: Callable[[], bool] = lambda: limiter.full  # noqa: E731 (a property that changes)
        assert not full()
        crowd = asyncio.create_task(fleet.rush(40))
        await asyncio.sleep(0.01)
        assert full()
        await crowd
        assert not full()


@pytest.mark.fault(25)
async def test_the_keys_of_a_limiter_share_a_hash_slot(cluster_nodes: list[EngineServer]) -> None:
    """A cluster, which refuses scripts over several hash slots, runs the limiter's script."""
    engine = Engine("redis+cluster://" + ",".join(each.address for each in cluster_nodes))
    await engine.open()
    await until(lambda: engine.state is EngineState.SHARED)
    for region in ("us-east-1", "us-west-2", "eu-west-1"):
        limiter = SharedLimiter(engine, f"fleet:123456789012:{region}", Quota(), Clock())
        await asyncio.gather(*(use_permit(limiter.reserve()) for _ in range(10)))
        assert limiter.shared
        assert 1 == limiter.members
        await limiter.aclose()
    await engine.aclose()
