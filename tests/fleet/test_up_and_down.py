"""The engine goes away and comes back again and again, in every way, under load."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from aioivschat import Quota
from aioivschat.redis._limiter import SharedLimiter
from support.engine import EngineServer
from support.virtual import VirtualClock, virtual_time
from support.virtual_engine import FAULTS, Condition, VirtualEngine, VirtualServer, break_engine

RATE, PROCESSES = 200, 3


@dataclass
class Run:
    """What became of some callers: when each was served, by its number."""

    served: dict[int, float] = field(default_factory=dict)
    came: dict[int, float] = field(default_factory=dict)

    def most_in_a_second(self) -> int:
        """Return the largest number of requests in any one second."""
        times, least, most = sorted(self.served.values()), 0, 0
        for at, time in enumerate(times):
            while times[least] <= time - 1:
                least += 1
            most = max(most, at - least + 1)
        return most


async def serve(
    server: VirtualServer, rate: float, faults: tuple[str, ...], times: int, seed: int
) -> Run:
    """Let callers come to three processes while the engine is away so many times.

    Without faults the engine is away throughout. The callers are the same for the same seed.
    """
    loop, run, crowd = asyncio.get_running_loop(), Run(), random.Random(seed)
    if not faults:
        server.condition = Condition.DEAD
    engines = [VirtualEngine(server) for _ in range(PROCESSES)]
    limiters = [
        SharedLimiter(engine, "fleet", Quota(), VirtualClock(), rng=server.rng, members=PROCESSES)
        for engine in engines
    ]

    async def call(number: int, limiter: SharedLimiter) -> None:
        run.came[number] = loop.time()
        reservation = limiter.reserve()
        await reservation.granted()
        await reservation.spend()
        reservation.release()
        run.served[number] = loop.time()
        reservation.served()

    async def come() -> None:
        calls: list[asyncio.Task[None]] = []
        while loop.time() < end:
            await asyncio.sleep(crowd.expovariate(rate))
            calls.append(asyncio.create_task(call(len(calls), crowd.choice(limiters))))
        await asyncio.gather(*calls)

    # Long enough for all faults and the pauses between them.
    end = loop.time() + 3.0 + 0.9 * times
    coming = asyncio.create_task(come())
    await asyncio.sleep(3.0)
    for number in range(times if faults else 0):
        seconds = server.rng.choice((0.02, 0.06, 0.1, 0.2, 0.35, 0.6))
        await break_engine(server, faults[number % len(faults)], seconds)
        await asyncio.sleep(server.rng.choice((0.1, 0.4, 1.0)))
    await coming
    for limiter in limiters:
        await limiter.aclose()
    for engine in engines:
        await engine.aclose()
    return run


@pytest.mark.fault(62)
@pytest.mark.parametrize("faults", [*((fault,) for fault in FAULTS), FAULTS], ids=str)
@virtual_time
async def test_no_second_is_above_the_quota(
    engine_server: EngineServer, faults: tuple[str, ...]
) -> None:
    """Three processes with more to send than the quota: all is sent, and never too much."""
    server = VirtualServer(engine_server, seed=1)
    run = await serve(server, 1.3 * RATE, faults, 20, seed=1)
    assert len(run.came) == len(run.served)
    assert run.most_in_a_second() <= RATE
    server.client.close()


@pytest.mark.fault(62)
@pytest.mark.parametrize("fault", FAULTS)
@virtual_time
async def test_nobody_waits_longer_than_without_an_engine(
    engine_server: EngineServer, fault: str
) -> None:
    """The same callers with the engine away throughout wait 0.3 s less at most."""
    without = await serve(VirtualServer(engine_server, seed=1), 0.7 * RATE, (), 20, seed=1)
    engine_server.client().flushall()
    run = await serve(VirtualServer(engine_server, seed=1), 0.7 * RATE, (fault,), 20, seed=1)
    both = run.served.keys() & without.served.keys()
    assert len(both) > 1_000
    late = [run.served[n] - run.came[n] - without.served[n] + without.came[n] for n in both]
    assert max(late) <= 0.3
