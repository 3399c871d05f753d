"""Random programs of three services on one real engine, which goes away and comes back meanwhile.

A program follows from its seed. It runs in virtual time, on a loop whose tasks wake in random
order, against the emulator's model in memory; the scripts are run by a real server.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from aioivschat import AsyncTokenService, ChatToken, PoolPolicy, Quota, TokenRequest
from aioivschat.emulator._model import Emulator
from aioivschat.planning._virtual_time import EPOCH
from search.simulation.books import who
from search.simulation.loop import ShuffledLoop
from search.simulation.programs import ROOMS, USERS, Who
from search.simulation.upstream import Sent, Upstream
from search.simulation.world import Broken
from support.engine import EngineServer
from support.services import SEALING_KEY
from support.virtual import VirtualClock
from support.virtual_engine import FAULTS, VirtualServer, VirtualTier, break_engine

RATE, SERVICES, STEPS = 200, 3, 40
_MOST_IN_A_SECOND = RATE + RATE // SERVICES
"""A process of which the engine cannot know that it goes by itself adds its part, for a moment."""

_LONG = 120.0
"""Virtual seconds in which all calls of a program end by far."""


class FleetWorld:
    """Runs one program.

    Attributes:
        reached: situations, and how often each occurred.
    """

    def __init__(self, server: EngineServer, loop: ShuffledLoop, seed: int) -> None:
        self.reached: Counter[str] = Counter()
        self._rng, self._loop, self._clock = Random(seed), loop, VirtualClock()
        self._server = VirtualServer(server, seed)
        self._server.lose_all()
        model = Emulator(
            clock=lambda: EPOCH + loop.time(),
            monotonic=loop.time,
            uniform=self._rng.random,
            latency=0.02,
            quota="unlimited",
        )
        self._sent: list[float] = []
        self._upstream = Upstream(model, self._clock, 5.0, 0.0, self._on_send)
        self._services = [
            AsyncTokenService(
                shared=VirtualTier(self._server, keys=[SEALING_KEY], members=SERVICES),
                session=self._upstream.session(),
                endpoint_url="http://127.0.0.1",
                quota=Quota(RATE),
                pool=PoolPolicy(prepared=False),
                clock=self._clock,
                rng=self._rng,
            )
            for _ in range(SERVICES)
        ]
        self._owners: dict[str, object] = {}  # what a token was handed out for, by token
        self._invalidated: list[tuple[AsyncTokenService, str | None, str | None]] = []
        self._calls: list[asyncio.Task[None]] = []
        self._cancelled: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run the program, and all calls that it has begun to their end."""
        breaking = asyncio.create_task(asyncio.sleep(0))
        for _ in range(STEPS):
            if breaking.done() and self._rng.random() < 0.3:
                fault = self._rng.choice(FAULTS)
                seconds = self._rng.choice((0.02, 0.1, 0.4, 2.0))
                self.reached[fault] += 1
                breaking = asyncio.create_task(break_engine(self._server, fault, seconds))
            await self._step()
        await breaking
        _, pending = await asyncio.wait(self._calls or [breaking], timeout=_LONG)
        if pending:
            raise Broken(f"{len(pending)} of {len(self._calls)} calls never end")
        for call in self._calls:
            if call not in self._cancelled:
                call.result()
        for service in self._services:
            stats = service.stats()
            if stats.flights or stats.waiting:
                raise Broken(f"at rest: {stats}")
            await service.aclose()
        if len(asyncio.all_tasks()) != 1:
            raise Broken("closed services have tasks")
        self._check_pace()
        self._server.client.close()

    async def _step(self) -> None:
        rng = self._rng
        service = rng.choice(self._services)
        match rng.choice(("issue",) * 5 + ("rush", "advance", "advance", "cancel", "invalidate")):
            case "issue":
                who = Who(rng.randrange(2), rng.randrange(2))
                how = rng.choice(("plain", "fresh", "key-1", "key-2"))
                self._begin(service, who.request(), how)
            case "rush":
                for _ in range(rng.choice((20, 150))):
                    self._begin(service, TokenRequest(ROOMS[0], f"{rng.random()}"), "fresh")
            case "advance":
                await asyncio.sleep(rng.choice((0.001, 0.05, 0.3, 1.0, 5.0)))
            case "cancel" if self._calls:
                call = rng.choice(self._calls)
                if call.cancel():
                    self._cancelled.add(call)
            case "invalidate":
                room, user = rng.choice(((ROOMS[0], None), (None, USERS[0]), (ROOMS[1], USERS[1])))
                service.invalidate(room=room, user=user)
                self._invalidated.append((service, room, user))

    def _begin(self, service: AsyncTokenService, request: TokenRequest, how: str) -> None:
        self._calls.append(asyncio.create_task(self._issue(service, request, how)))

    async def _issue(self, service: AsyncTokenService, request: TokenRequest, how: str) -> None:
        known = len(self._invalidated)
        key = how if how.startswith("key") else None
        token = await service.issue(request, idempotency_key=key, fresh=how == "fresh")
        owner = object() if how == "fresh" else (how, request.identity)
        self._check_token(service, request, token, owner, known)

    def _check_token(
        self,
        service: AsyncTokenService,
        request: TokenRequest,
        token: ChatToken,
        owner: object,
        known: int,
    ) -> None:
        sent = self._upstream.tokens.get(token.token)
        if sent is None or sent.who != who(request):
            raise Broken("a token is handed out that was not minted for the identity")
        if self._owners.setdefault(token.token, owner) != owner:
            raise Broken("a token is handed out to two attempts")
        if self._clock.monotonic() - sent.at > 55.0:
            raise Broken("a token is handed out too late")
        for by, room, user in self._invalidated[sent.invalidations : known]:
            if by is service and room in (None, request.room) and user in (None, request.user):
                raise Broken("a token is handed out that its own process had invalidated")
        self.reached["reused" if token.reused else "new"] += 1

    def _on_send(self, sent: Sent) -> None:
        sent.invalidations = len(self._invalidated)
        self._sent.append(self._loop.time())

    def _check_pace(self) -> None:
        least, most = 0, 0
        for number, moment in enumerate(self._sent):
            while self._sent[least] <= moment - 1:
                least += 1
            most = max(most, number - least + 1)
        if most > _MOST_IN_A_SECOND:
            raise Broken(f"{most} requests in a second")


def run_fleet(server: EngineServer, seed: int) -> Counter[str]:
    """Run the program of a seed on a loop of its own; return what it reached.

    Raises:
        Broken: something that must hold does not.
    """
    loop = ShuffledLoop(Random(seed))

    async def make() -> FleetWorld:
        return FleetWorld(server, loop, seed)

    world = loop.run_until_complete(make())
    try:
        loop.run_until_complete(world.run())
    finally:
        loop.give_up()
        for service in world._services:
            service._pool._calls.clear()  # after a failure it would warn in a later test
    return world.reached
