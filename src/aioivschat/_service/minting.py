"""How a token is brought: minted with a permit, or found in the fleet; and kept for whom it is.

A flight queues for a permit, sends its request, and tries again where that makes sense. In a fleet
it asks the fleet first, and tells it afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aioivschat._aws.clients import ClientPool
from aioivschat._clock import Clock
from aioivschat._events import (
    AttemptFailed,
    Minted,
    Observers,
    Retrying,
    Shed,
    Source,
    Stocked,
)
from aioivschat._models import ChatToken, Priority, RoomArn, SharingKey, TokenRequest
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.fleet import Busy, Fenced, Held, SharedFlight, SharedTokens
from aioivschat._service.limiter import Limiter, Reservation
from aioivschat._service.retry import RETRIED, Retrier
from aioivschat._service.singleflight import Flight, SingleFlight
from aioivschat._service.stock import TokenStock
from aioivschat.errors import AwsError, ChatTokenError, MalformedResponse, Overloaded, Throttled

NEVER = float("inf")
"""The deadline of a call without one."""

_LEASE = 10.0
"""Seconds beyond the expected wait that nobody else of a fleet may mint for the same key: a request
with some retries. Whoever takes longer has lost nothing but a request."""


@dataclass(slots=True)
class Counters:
    """Counted from the start; :class:`~aioivschat.Stats` says what each is."""

    requests: int = 0
    minted: int = 0
    throttled: int = 0
    failed: int = 0
    stock: int = 0
    joined: int = 0
    shed: int = 0
    shared: int = 0
    stocked: int = 0


class _NoPlace:
    """The place of a flight that may find its token in the fleet, and needs no permit then."""

    expected = float("-inf")

    async def granted(self) -> None:
        """Nothing to wait for."""

    def promote(self, priority: Priority) -> None:
        """Nothing to promote."""

    def release(self) -> None:
        """Nothing to give back."""


_NO_PLACE = _NoPlace()


class Mint(Flight[Entry]):
    """The flight that mints one token.

    Attributes:
        shared: the same flight as the fleet sees it.
        began: when, by the monotonic clock; of a flight of a fleet.
        published: whether its token is known to the fleet as the attempt's.
        sent: requests sent for it.
        source: where its token came from.
    """

    __slots__ = (
        "began",
        "deadline",
        "generation",
        "limiter",
        "priority",
        "published",
        "request",
        "reservation",
        "sent",
        "shared",
        "source",
    )

    key: SharingKey | None

    def __init__(
        self,
        request: TokenRequest,
        limiter: Limiter,
        priority: Priority,
        deadline: float,
        generation: int,
        reservation: Reservation,
    ) -> None:
        super().__init__(key=None)
        self.request = request
        self.limiter = limiter
        self.priority = priority
        self.deadline = deadline
        self.generation = generation
        self.reservation = reservation
        self.shared: SharedFlight | None = None
        self.began = 0.0
        self.published = False
        self.sent = 0
        self.source = Source.FLIGHT

    def welcome(self, priority: Priority, deadline: float) -> None:
        """Go on for one more caller: as long and as urgently as the most demanding one."""
        self.deadline = max(self.deadline, deadline)
        if priority < self.priority:
            self.priority = priority
            self.reservation.promote(priority)

    def reserve_again(self) -> None:
        """Take a place for a retry."""
        self.reservation = self.limiter.reserve(self.priority, room=self.request.room, again=True)

    def stop(self) -> None:
        """Cancel the work and give its place back, even if it has not begun to run."""
        self.reservation.release()
        super().stop()


class Minter:
    """Starts flights and brings their tokens.

    Args:
        pool: the clients.
        cache: the delivered tokens of this process.
        stock: its undelivered tokens.
        fences: what was invalidated.
        retrier: tries again.
        clock: where the time comes from.
        observers: told what happens.
        on_stocked: called when a token went into the stock.

    Attributes:
        counters: of what happened.
        flights: those under way.
        tokens: the fleet's; ``None`` where there is none, or it shares its quota only.
        closing: whether the service is: nothing is tried again, and nothing is kept.
    """

    def __init__(
        self,
        pool: ClientPool,
        cache: TokenCache,
        stock: TokenStock,
        fences: Fences,
        retrier: Retrier,
        clock: Clock,
        observers: Observers,
        on_stocked: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._cache = cache
        self._stock = stock
        self._fences = fences
        self._retrier = retrier
        self._clock = clock
        self._observers = observers
        self._on_stocked = on_stocked
        self.counters = Counters()
        self.flights = SingleFlight[Entry, Mint](self._bring, self._keep_unclaimed)
        self.tokens: SharedTokens | None = None
        self.closing = False

    def new_flight(
        self,
        request: TokenRequest,
        limiter: Limiter,
        priority: Priority,
        deadline: float,
        *,
        reserve: bool = True,
    ) -> Mint:
        """Return a flight, with a place in the queue unless the fleet is to be asked first."""
        place = limiter.reserve(priority, room=request.room) if reserve else _NO_PLACE
        flight = Mint(request, limiter, priority, deadline, self._fences.generation, place)
        if self.tokens is not None:
            flight.began = self._clock.monotonic()
        return flight

    def _bring(self, flight: Mint) -> Coroutine[Any, Any, Entry]:
        return self._mint(flight) if self.tokens is None else self._fly_in_fleet(flight)

    def hand_out(self, entry: Entry) -> ChatToken | None:
        """Give a token that has come to a caller; ``None`` if it has died on the way."""
        return entry.hand_out() if self._cache.is_alive(entry) else None

    # Who is let in.

    def admit_new(
        self, request: TokenRequest, limiter: Limiter, priority: Priority, deadline: float
    ) -> None:
        """Refuse what would have to wait for too long, or behind too many."""
        if limiter.full:
            wait = limiter.predicted_wait(priority, request.room)
            self._shed(request, "too many calls are waiting", wait)
        if deadline < NEVER:
            expected = self._clock.monotonic() + limiter.predicted_wait(priority, request.room)
            self.admit(request, expected, deadline)

    def admit(self, request: TokenRequest, expected: float, deadline: float) -> None:
        """Refuse what would have its turn after its deadline."""
        if expected > deadline:
            self._shed(request, "the wait would be longer than the timeout", expected - deadline)

    def _shed(self, request: TokenRequest, reason: str, retry_after: float) -> None:
        self.counters.shed += 1
        if self._observers:
            self._observers.tell(Shed(request.room, retry_after))
        raise Overloaded(reason, retry_after)

    # From AWS.

    async def _mint(self, flight: Mint) -> Entry:
        await flight.reservation.granted()
        try:
            entry = await self._send(flight, 1)
        except RETRIED as error:
            entry = await self._try_again(flight, error)
        # Without callers it becomes stock instead; in a fleet, the fleet is told first.
        if self.tokens is None:
            self._keep(flight, entry)
        return entry

    async def _try_again(self, flight: Mint, failed: Exception) -> Entry:
        async def send_again(number: int) -> Entry:
            flight.reserve_again()
            await flight.reservation.granted()
            return await self._send(flight, number)

        def worthwhile(delay: float) -> bool:
            return (
                flight.callers > 0
                and not self.closing
                and self._clock.monotonic() + delay < flight.deadline
            )

        def before_sleep(number: int, delay: float) -> None:
            if self._observers:
                self._observers.tell(Retrying(flight.request.room, number, delay))

        return await self._retrier.run(
            send_again, failed=failed, worthwhile=worthwhile, before_sleep=before_sleep
        )

    async def _send(self, flight: Mint, number: int) -> Entry:
        """Send one request and keep account of it."""
        request, clock, counters = flight.request, self._clock, self.counters
        started, started_wall = clock.monotonic(), clock.wall()
        counters.requests += 1
        flight.sent += 1
        # From here on AWS may have minted: to cancel would waste the token.
        flight.committed = True
        try:
            minted = await self._pool.mint(RoomArn.parse(request.room).region, request)
            end, wall_end = started + minted.life, started_wall + minted.life
            entry = Entry(request.identity, minted.token, end, wall_end, flight.generation)
            # An attempt like any other that failed: else a slow upstream would be asked for ever.
            if not self._cache.is_alive(entry):
                raise MalformedResponse(f"too little is left of the token's {minted.life:.1f} s")
        except ChatTokenError as error:
            flight.committed = False
            if isinstance(error, Throttled):
                counters.throttled += 1
                flight.limiter.throttled()
            else:
                counters.failed += 1
            if self._observers:
                status = error.status if isinstance(error, AwsError) else 0
                seconds = clock.monotonic() - started
                name = type(error).__name__
                self._observers.tell(AttemptFailed(request.room, number, name, status, seconds))
            raise
        counters.minted += 1
        flight.limiter.served()
        if self._observers:
            self._observers.tell(Minted(request.room, number, clock.monotonic() - started))
        return entry

    def _keep(self, flight: Mint, entry: Entry) -> None:
        """Keep a token for those who will ask for the same."""
        if flight.callers and flight.key is not None and self._keepable(flight, entry):
            self._cache.put(flight.key, entry)

    def _keepable(self, flight: Mint, entry: Entry) -> bool:
        return not self._fences.is_fenced(entry.generation, entry.identity)

    def _keep_unclaimed(self, flight: Mint, entry: Entry) -> None:
        # What the fleet knows as an attempt's stays so, whoever of its callers is left.
        if not self.closing and not (flight.published or entry.handed_out):
            self._give(flight, entry)

    # In a fleet.

    async def _fly_in_fleet(self, flight: Mint) -> Entry:
        """Bring a token that the fleet has, or mint one for the fleet."""
        try:
            while True:
                entry = await self._claim(flight)
                if entry is None:
                    entry = await self._mint(flight)
                elif entry.handed_out:
                    self._keep(flight, entry)
                    return entry
                # A call may have taken a flight of prewarming over since.
                if flight.shared is None or flight.key is None or not flight.callers:
                    return entry
                asked = self._clock.monotonic()
                life, age = entry.monotonic_end - asked, asked - flight.began
                answer = await flight.shared.publish(entry.token, life, age)
                if answer is None or isinstance(answer, Fenced):
                    flight.published = True
                    if answer is None:
                        self._keep(flight, entry)
                    return entry
                # Another process was faster: its token is the attempt's, and ours is nobody's.
                self._give(flight, entry)
                if isinstance(answer, Held):
                    entry = self._taken(flight, answer, asked)
                    self._keep(flight, entry)
                    return entry
                flight.committed = False
                flight.reservation = _NO_PLACE
                await flight.shared.landed()
        finally:
            if flight.shared is not None:
                flight.shared.close()

    async def _claim(self, flight: Mint) -> Entry | None:
        """Ask the fleet for a token; without one, take a place in the queue to mint it."""
        # Prewarming means to mint, and has its place.
        if flight.shared is None or flight.reservation is not _NO_PLACE:
            return None
        limiter, priority, room = flight.limiter, flight.priority, flight.request.room
        while True:
            asked = self._clock.monotonic()
            # What a trip brings must not be lost: nobody's leaving cancels it.
            flight.committed = True
            wait = limiter.predicted_wait(priority, room)
            answer = await flight.shared.claim(wait + _LEASE)
            if isinstance(answer, Held):
                return self._taken(flight, answer, asked)
            flight.committed = False
            if not flight.callers or self.closing:
                flight.stop()
            # Here a stopped flight ends.
            await (flight.shared.landed() if isinstance(answer, Busy) else asyncio.sleep(0))
            if answer is None:
                self.admit_new(flight.request, limiter, flight.priority, flight.deadline)
                flight.reservation = limiter.reserve(flight.priority, room=room)
                return None

    def _taken(self, flight: Mint, held: Held, asked: float) -> Entry:
        """Take a token of the fleet, which lives so long from the moment it was asked for."""
        self.counters.shared += 1
        flight.source = Source.SHARED
        behind = self._clock.monotonic() - asked
        wall_end = self._clock.wall() - behind + held.life
        end, identity = asked + held.life, flight.request.identity
        return Entry(identity, held.token, end, wall_end, flight.generation)

    def _give(self, flight: Mint, entry: Entry) -> None:
        """Put a token that nobody was given into the stock: the fleet's, if it can be reached."""
        identity = flight.request.identity
        if self.tokens is None:
            if not self._stock.restock(entry):
                return
        else:
            now = self._clock.monotonic()
            self.tokens.stock(
                identity,
                entry.token,
                life=entry.monotonic_end - now,
                age=now - flight.began,
                refused=lambda: self._stock.restock(entry),
            )
        self.counters.stocked += 1
        self._on_stocked()
        if self._observers:
            self._observers.tell(Stocked(flight.request.room))
