"""Mints one token: waits for a permit, sends the request, retries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

from aioivschat._aws.clients import ClientPool
from aioivschat._clock import Clock
from aioivschat._contexts import time_limit
from aioivschat._events import (
    AttemptFailed,
    Minted,
    Observers,
    Retrying,
    Source,
    Stocked,
)
from aioivschat._models import SharingKey
from aioivschat._service.admission import Admission, Call
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.fleet import SharedFlight
from aioivschat._service.lifecycle import Lifecycle
from aioivschat._service.limiter import Limiter, Reservation
from aioivschat._service.retry import RETRIED, Retrier
from aioivschat._service.signing_in import SignIns
from aioivschat._service.singleflight import Flight, SingleFlight
from aioivschat._service.stats import Counters
from aioivschat._service.stock import TokenStock
from aioivschat.errors import (
    AwsError,
    ChatTokenError,
    ConnectionFailed,
    CredentialsFailed,
    MalformedResponse,
    Throttled,
)


class TokenFlight(Flight[Entry]):
    """The flight that mints one token.

    Attributes:
        call: what is asked for, for as long and as urgently as its most demanding caller wants.
        generation: of the fences, at its start.
        started: its start, by the monotonic clock.
        shared: the same flight as the fleet sees it; ``None`` without a fleet, or while no caller
            shares it.
        published: whether the fleet knows its token as the attempt's.
        sent: requests sent for it.
        asleep_until: when a retry is due, by the monotonic clock, while it waits for that.
        superseded: whether another flight took its place, as a caller had less time than that.
    """

    __slots__ = (
        "asleep_until",
        "call",
        "generation",
        "limiter",
        "published",
        "reservation",
        "sent",
        "shared",
        "source",
        "started",
        "superseded",
    )

    key: SharingKey | None

    def __init__(
        self,
        call: Call,
        limiter: Limiter,
        reservation: Reservation,
        generation: int,
        started: float,
        shared: SharedFlight | None = None,
    ) -> None:
        super().__init__(key=None)
        self.call = call
        self.limiter = limiter
        self.reservation = reservation
        self.generation = generation
        self.started = started
        self.shared = shared
        self.published = False
        self.sent = 0
        self.asleep_until = -math.inf
        self.superseded = False
        self.source = Source.FLIGHT

    def expected_for(self, call: Call, now: float) -> float:
        """Return when the permit is expected if a call joins, which may make it more urgent."""
        expected = self.reservation.expected
        if call.priority < self.call.priority:
            wait = self.limiter.predicted_wait(call.priority, call.request.room)
            expected = min(expected, now + wait)
        return expected

    def extend_for(self, call: Call) -> None:
        """Go on for one more caller: as long and as urgently as the most demanding one wants."""
        own = self.call
        if call.priority < own.priority:
            self.reservation.promote(call.priority)
        elif call.deadline <= own.deadline:
            return
        deadline, priority = max(own.deadline, call.deadline), min(own.priority, call.priority)
        self.call = replace(own, deadline=deadline, priority=priority)

    def fall_asleep(self, until: float) -> None:
        """Take note of when a retry is due."""
        self.asleep_until = until

    def wake(self) -> None:
        """Take note that the retry is due."""
        self.asleep_until = -math.inf

    def supersede(self) -> None:
        """Stop the flight while it sleeps; its callers join the one that took its place."""
        self.superseded = True
        self.stop()

    def note_request(self) -> None:
        """Count a request that is being sent; from here on, to cancel would waste a token."""
        self.sent += 1
        self.commit()

    def note_token_of_fleet(self) -> None:
        """Take note that the token came from the fleet."""
        self.source = Source.SHARED

    def note_published(self) -> None:
        """Take note that the fleet knows the token as the attempt's."""
        self.published = True

    def start_over(self, reservation: Reservation) -> None:
        """Go back to before the claim, as another process of the fleet mints for the attempt."""
        self.reservation = reservation
        self.uncommit()

    def adopt(self, shared: SharedFlight) -> None:
        """Take note of how the fleet sees this flight: it has found a caller who shares it."""
        self.shared = shared

    def reserve(self, *, again: bool = False) -> None:
        """Queue for a permit, for the first request or for a retry."""
        room, priority = self.call.request.room, self.call.priority
        self.reservation = self.limiter.reserve(priority, room=room, again=again)

    def stop(self) -> None:
        """Cancel the work and give its permit back, even if it has not begun to run."""
        self.reservation.release()
        super().stop()


@dataclass(eq=False, kw_only=True)
class Minter:
    """Mints the tokens of flights, on one machine.

    Once `lifecycle` is no longer open, nothing is retried and nothing is kept. `on_stocked` is
    called when a token went into the stock.

    Attributes:
        flights: those under way.
        stock_is_shared: whether the tokens that nobody was given go to a fleet.
    """

    lifecycle: Lifecycle
    pool: ClientPool
    sign_ins: SignIns
    cache: TokenCache
    stock: TokenStock
    fences: Fences
    admission: Admission
    retrier: Retrier
    counters: Counters
    clock: Clock
    observers: Observers
    on_stocked: Callable[[], None]
    stock_is_shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.flights = SingleFlight[Entry, TokenFlight](self._bring_token, self._keep_unclaimed)

    @property
    def rejected(self) -> int:
        """How many values of a fleet could not be opened."""
        return 0

    def make_flight(self, call: Call, limiter: Limiter) -> TokenFlight:
        """Return a flight for a caller, if the call can be served in time.

        Raises:
            Overloaded: it cannot.
        """
        self.admission.check_queue(call, limiter)
        return self.make_flight_ahead(call, limiter)

    def make_flight_ahead(self, call: Call, limiter: Limiter) -> TokenFlight:
        """Return a flight for the stock."""
        reservation = limiter.reserve(call.priority, room=call.request.room)
        now = self.clock.monotonic()
        return TokenFlight(call, limiter, reservation, self.fences.generation, now)

    def hand_over(self, flight: TokenFlight, call: Call) -> None:
        """Give a flight for the stock to a caller."""
        flight.extend_for(call)

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Forget the tokens of a room, of a user, or of a user in a room."""
        self.fences.add(room, user)

    async def settle(self) -> None:
        """Wait until the fleet has all that was sent to it."""

    async def land_flights(self, grace: float) -> None:
        """End all flights; those whose request was sent may take ``grace`` seconds for it."""
        for flight in self.flights:
            if not flight.committed:
                flight.stop()
        try:
            async with time_limit(grace):
                for flight in self.flights:
                    await flight.ended()
        except TimeoutError:
            for flight in self.flights:
                flight.stop()
            for flight in self.flights:
                await flight.ended()

    async def _bring_token(self, flight: TokenFlight) -> Entry:
        entry = await self._mint(flight)
        self._deliver(flight, entry)
        return entry

    async def _mint(self, flight: TokenFlight) -> Entry:
        await self._wait_for_permit(flight)
        try:
            return await self._send_and_correct_clock(flight, 1)
        except RETRIED as error:
            return await self._retry(flight, error)

    async def _retry(self, flight: TokenFlight, failure: Exception) -> Entry:
        async def send_again(number: int) -> Entry:
            flight.wake()
            entry = await self._resume(flight)
            if entry is not None:
                return entry
            await self._wait_for_permit(flight)
            return await self._send_and_correct_clock(flight, number)

        def fall_asleep(number: int, delay: float) -> None:
            flight.fall_asleep(self.clock.monotonic() + delay)
            self._let_others_mint(flight, delay)
            if self.observers:
                self.observers.tell(Retrying(flight.call.request.room, number, delay))

        return await self.retrier.run(
            send_again,
            failed=failure,
            worthwhile=partial(self._is_wanted, flight),
            before_sleep=fall_asleep,
        )

    def _let_others_mint(self, flight: TokenFlight, delay: float) -> None:
        """Let other processes mint for the attempt while a flight is asleep for so many seconds."""

    async def _resume(self, flight: TokenFlight) -> Entry | None:
        """Queue for a permit after a sleep, unless a token has come meanwhile."""
        flight.reserve(again=True)
        return None

    def _is_wanted(self, flight: TokenFlight, delay: float) -> bool:
        """Tell whether anybody would still want a token that is asked for in ``delay`` seconds."""
        return (
            flight.callers > 0
            and self.lifecycle.is_open
            and self.clock.monotonic() + delay < flight.call.deadline
        )

    async def _wait_for_permit(self, flight: TokenFlight) -> None:
        """Wait for a permit, and then for credentials to sign a request with."""
        await flight.reservation.granted()
        region = flight.call.room.region
        if self.sign_ins.is_ready(region):
            return
        try:  # the credentials have ended while the call waited
            await self.sign_ins.wait(region, flight.started, flight.call.deadline)
        except BaseException:
            flight.reservation.release()
            raise

    async def _send_and_correct_clock(self, flight: TokenFlight, number: int) -> Entry:
        """Send a request, and once more if the time that it was signed by was wrong."""
        try:
            return await self._send_request(flight, number)
        except AwsError as error:
            if not (error.clock_corrected and self._is_wanted(flight, 0.0)):
                raise
        # Not counted as a retry, which is for faults of AWS: this was one of the host's clock.
        flight.reserve(again=True)
        await self._wait_for_permit(flight)
        return await self._send_request(flight, number)

    async def _send_request(self, flight: TokenFlight, number: int) -> Entry:
        """Send one request with the permit that was granted, and keep account of it."""
        call, clock, counters, reservation = (
            flight.call,
            self.clock,
            self.counters,
            flight.reservation,
        )
        request = call.request
        started, started_wall = clock.monotonic(), clock.wall()
        sent = False

        async def leave() -> bool:
            nonlocal sent
            waited = await reservation.spend()
            if not sent:
                sent = True
                counters.requests += 1
                flight.note_request()
            return waited

        try:
            minted = await self.pool.mint(call.room.region, request, leave)
            await leave()  # if a listener or a mock answered, over no connection of ours
            end, wall_end = started + minted.life, started_wall + minted.life
            entry = Entry(request.identity, minted.token, end, wall_end, flight.generation)
            # A failure like any other, so that a slow upstream is not asked for ever.
            if not self.cache.is_alive(entry):
                raise MalformedResponse(f"too little is left of the token's {minted.life:.1f} s")
        except CredentialsFailed:
            raise  # nothing was sent, so nothing is counted
        except ChatTokenError as error:
            if isinstance(error, ConnectionFailed):
                counters.requests += not sent  # it found no connection
            else:
                await leave()
            flight.uncommit()
            if isinstance(error, Throttled):
                counters.throttled += 1
                reservation.throttled()
            else:
                counters.failed += 1
            if self.observers:
                status = error.status if isinstance(error, AwsError) else 0
                seconds = clock.monotonic() - started
                name = type(error).__name__
                self.observers.tell(AttemptFailed(request.room, number, name, status, seconds))
            raise
        finally:
            reservation.release()
        counters.minted += 1
        reservation.served()
        if self.observers:
            self.observers.tell(Minted(request.room, number, clock.monotonic() - started))
        return entry

    def _deliver(self, flight: TokenFlight, entry: Entry) -> None:
        """Keep a token for repeated calls, unless nobody waits for it or it was invalidated."""
        is_fenced = self.fences.is_fenced(entry.generation, entry.identity)
        if flight.callers and flight.key is not None and not is_fenced:
            self.cache.put(flight.key, entry)

    def _keep_unclaimed(self, flight: TokenFlight, entry: Entry) -> None:
        # A token that the fleet knows as an attempt's stays the attempt's, whoever has left.
        if self.lifecycle.is_open and not (flight.published or entry.handed_out):
            self._put_into_stock(flight, entry)

    def _put_into_stock(self, flight: TokenFlight, entry: Entry) -> None:
        """Keep a token that nobody was handed, for a later call."""
        if self.stock.restock(entry):
            self._note_stocked(flight)

    def _note_stocked(self, flight: TokenFlight) -> None:
        self.counters.stocked += 1
        self.on_stocked()
        if self.observers:
            self.observers.tell(Stocked(flight.call.request.room))
