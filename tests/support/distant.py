"""A fleet in virtual time: a real server runs the real scripts, by a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any

from aioivschat import Quota
from aioivschat.redis._engine import CALL_TIMEOUT_SECONDS, Engine, EngineAway, EngineState, Script
from aioivschat.redis._limiter import SharedLimiter
from support.engine import EngineServer
from support.virtual import VirtualClock

_NOW_KEY = "virtual:now"


_EPOCH = 1_000_000_000.0
"""Seconds that the engine's clock shows when virtual time is 0."""


class DistantEngine(Engine):
    """An engine that is some virtual milliseconds away.

    Args:
        client: a blocking one: no virtual time passes while the server works.
        round_trip: seconds to the server and back; each call takes up to a tenth more.
        rng: where the difference comes from.

    Attributes:
        calls: when each call was made.
        behind: seconds that the engine's clock is behind.
    """

    behind = 0.0

    def __init__(self, client: Any, round_trip: float, rng: random.Random) -> None:
        super().__init__(client, rng=rng)
        self._state = EngineState.SHARED
        self._rng = rng
        self._round_trip = round_trip
        self.calls: list[float] = []
        self._answers = True

    async def run_script(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[bytes | str | int] = (),
        *,
        urgent: bool = False,
    ) -> Any:
        """Run a script, or time out while the engine does not answer."""
        if self.state is EngineState.AWAY:
            raise EngineAway("TimeoutError", may_have_run=False)
        self.calls.append(asyncio.get_running_loop().time())
        if not self._answers:
            await asyncio.sleep(CALL_TIMEOUT_SECONDS)
            self._change_state(EngineState.AWAY)
            raise EngineAway("TimeoutError", may_have_run=True)
        await asyncio.sleep(self._round_trip / 2 * self._rng.uniform(1, 1.1))
        now = round((_EPOCH + asyncio.get_running_loop().time() - self.behind) * 1e6)
        source = script.source.replace(
            "redis.call('TIME')", f"{{0, redis.call('GET', '{_NOW_KEY}')}}"
        )
        assert source != script.source
        self._client.set(_NOW_KEY, now)
        answer = self._client.eval(source, len(keys), *keys, *args)
        await asyncio.sleep(self._round_trip / 2 * self._rng.uniform(1, 1.1))
        return answer

    def stop_answering(self) -> None:
        """Let every call time out, so that the first one finds that the engine is away."""
        self._answers = False

    def go_away(self) -> None:
        """Let the engine be known to be away."""
        self._answers = False
        self._change_state(EngineState.AWAY)

    def come_back(self) -> None:
        """Let the engine answer again, and be known to do so."""
        self._answers = True
        self._change_state(EngineState.SHARED)


class Fleet:
    """Processes that share a quota.

    Args:
        server: the engine's.
        processes: how many.
        quota: what is shared.
        round_trip: seconds to the engine and back.
        seed: of all random numbers.
        connect: returns the seconds that a connection takes to open now; it stays open.

    Attributes:
        sent: when requests were sent, and by which process, in order.
    """

    def __init__(
        self,
        server: EngineServer,
        processes: int,
        quota: Quota = Quota(),  # noqa: B008 (frozen)
        *,
        round_trip: float = 0.001,
        seed: int = 1,
        connect: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.rng = random.Random(seed)
        self.client = server.client()
        self.engines = [DistantEngine(self.client, round_trip, self.rng) for _ in range(processes)]
        self.limiters = [
            SharedLimiter(engine, "fleet", quota, VirtualClock(), rng=self.rng)
            for engine in self.engines
        ]
        self.sent: list[tuple[float, int]] = []
        self._connect = connect
        self._idle = [0] * processes

    async def send_one(self, process: int) -> None:
        """Wait for a permit in a process and record a request."""
        limiter = self.limiters[process]
        reservation = limiter.reserve()
        await reservation.granted()
        if self._idle[process]:
            self._idle[process] -= 1
        elif seconds := self._connect():
            await asyncio.sleep(seconds)
        await reservation.spend()
        reservation.release()
        self._idle[process] += 1
        self.sent.append((asyncio.get_running_loop().time(), process))
        reservation.served()

    async def rush(self, *crowds: int) -> None:
        """Send so many requests from each process, all begun at once; wait until all are sent."""
        callers = [
            self.send_one(number) for number, crowd in enumerate(crowds) for _ in range(crowd)
        ]
        await asyncio.gather(*callers)

    async def trickle(self, rate: float, seconds: float) -> list[float]:
        """Send requests at random moments from random processes; return how long each waited."""
        loop = asyncio.get_running_loop()
        waits: list[float] = []

        async def timed(process: int) -> None:
            came = loop.time()
            await self.send_one(process)
            waits.append(loop.time() - came)

        end, callers = loop.time() + seconds, []
        while loop.time() < end:
            await asyncio.sleep(self.rng.expovariate(rate))
            callers.append(asyncio.create_task(timed(self.rng.randrange(len(self.limiters)))))
        await asyncio.gather(*callers)
        return waits

    def calls(self, start: float, end: float) -> int:
        """Return how many script calls were made between two moments."""
        return sum(start <= call < end for engine in self.engines for call in engine.calls)

    def most_in_a_second(self) -> int:
        """Return the largest number of requests in any one second."""
        times = [time for time, _ in self.sent]
        least, most = 0, 0
        for at, time in enumerate(times):
            while times[least] <= time - 1:
                least += 1
            most = max(most, at - least + 1)
        return most

    async def aclose(self) -> None:
        """Close all limiters."""
        for limiter in self.limiters:
            await limiter.aclose()
        self.client.close()
