"""From a call to its token: one that is there, a flight under way, or a new flight."""

from __future__ import annotations

import asyncio
from typing import Any

from aioivschat._aws.clients import ClientPool
from aioivschat._clock import Clock
from aioivschat._events import Delivered, Joined, Observers, Source
from aioivschat._models import ChatToken, Priority, RoomArn, SharingKey, TokenRequest
from aioivschat._service.admission import NEVER, Admission, Call
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.lifecycle import Lifecycle
from aioivschat._service.limiters import Limiters
from aioivschat._service.minting import Minter, TokenFlight
from aioivschat._service.pending import PendingRequests
from aioivschat._service.singleflight import FlightStopped
from aioivschat._service.stats import Counters
from aioivschat._service.stock import TokenStock
from aioivschat.errors import ChatTokenError, DeadlineExceeded, InvalidRequest, ServiceClosed


class Issuer:
    """Issues tokens to callers.

    Args:
        lifecycle: whether the service is open.
        limiters: those of the accounts and regions.
        pool: the clients.
        cache: the delivered tokens.
        stock: the undelivered tokens.
        fences: what was invalidated.
        admission: who is let in.
        minter: mints what is not there.
        pending: what is to be minted ahead; callers take it over.
        counters: count what happens.
        clock: where the time comes from.
        observers: told what happens.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        limiters: Limiters,
        pool: ClientPool,
        cache: TokenCache,
        stock: TokenStock,
        fences: Fences,
        admission: Admission,
        minter: Minter,
        pending: PendingRequests,
        counters: Counters,
        clock: Clock,
        observers: Observers,
    ) -> None:
        self._lifecycle = lifecycle
        self._limiters = limiters
        self._pool = pool
        self._cache = cache
        self._stock = stock
        self._fences = fences
        self._admission = admission
        self._minter = minter
        self._flights = minter.flights
        self._pending = pending
        self._counters = counters
        self._clock = clock
        self._observers = observers

    def find_delivered(self, key: SharingKey | tuple[Any, ...]) -> Entry | None:
        """Return the delivered token of a key, or of a tuple that merely equals an identity."""
        entry = self._cache.get(key)
        if entry is not None and self._observers:
            self._observers.tell(Delivered(entry.identity[0], Source.CACHE, 0.0))
        return entry

    def take_available(self, request: TokenRequest, key: SharingKey | None) -> ChatToken | None:
        """Return a token that is there already: delivered under the key, or in stock."""
        entry = self.find_delivered(key) if key is not None else None
        if entry is None:
            entry = self._stock.take(request.identity)
            if entry is None:
                return None
            self._counters.stock += 1
            if key is not None:
                self._cache.put(key, entry)
            if self._observers:
                self._observers.tell(Delivered(request.room, Source.STOCK, 0.0))
        return entry.hand_out()

    async def wait_for_token(
        self,
        request: TokenRequest,
        key: SharingKey | None,
        priority: Priority,
        timeout: float | None,
    ) -> ChatToken:
        """Return a token that has to come yet, within so many seconds.

        Raises:
            InvalidRequest: ``timeout`` is out of its range.
            Overloaded: it cannot come in time.
            DeadlineExceeded: it did not.
        """
        room = RoomArn.parse(request.room)
        if timeout is None:
            return await self._join_until_token(Call(request, room, key, priority, NEVER))
        if not timeout > 0:
            raise InvalidRequest("timeout", "above 0 s, or None", f"{timeout}")
        call = Call(request, room, key, priority, self._clock.monotonic() + timeout)
        try:
            async with asyncio.timeout(timeout):
                return await self._join_until_token(call)
        except TimeoutError as error:
            if isinstance(error, ChatTokenError):
                raise
        raise DeadlineExceeded(timeout)

    async def _join_until_token(self, call: Call) -> ChatToken:
        started = self._clock.monotonic()
        region = call.room.region
        while True:
            flight = self._flights.find(call.key) if call.key is not None else None
            is_leaving = flight is not None and flight.leaving
            # A permit is worth nothing until there is a client to use it.
            if is_leaving or not self._pool.is_open(region):
                await self._pool.open(region)
                if flight is not None and flight.leaving:
                    await flight.ended()
                # Either may have taken a while.
                self._lifecycle.check_open()
                token = self.take_available(call.request, call.key)
                if token is not None:
                    return token
                continue
            flight = self._join_or_start_flight(flight, call)
            try:
                token = await self._flights.join(flight, self._hand_out_alive)
            except FlightStopped:
                raise ServiceClosed from None
            if token is not None:
                if self._observers:
                    waited = self._clock.monotonic() - started
                    self._observers.tell(Delivered(call.request.room, flight.source, waited))
                return token
            # It may be closing by now, and would not wait for a flight that starts after that.
            self._lifecycle.check_open()

    def _join_or_start_flight(self, flight: TokenFlight | None, call: Call) -> TokenFlight:
        """Return the flight of the call's key, one for the stock that it takes over, or a new one.

        Args:
            flight: under way for the call's key, if any is.
            call: the call.
        """
        identity = call.identity
        if flight is not None and not self._fences.is_fenced(flight.generation, identity):
            self._admission.check_turn(call, flight.reservation.expected)
            self._counters.joined += 1
            if self._observers:
                self._observers.tell(Joined(call.request.room))
            flight.extend_for(call)
            return flight
        flight = self._pending.take_over(identity)
        if flight is not None:
            self._minter.hand_over(flight, call)
        else:
            limiter = self._limiters.get_or_make(call.room)
            flight = self._minter.make_flight(call, limiter)
            self._pending.go_first(identity, limiter)
        if call.key is not None:
            self._flights.share(flight, call.key)
        return flight

    def _hand_out_alive(self, entry: Entry) -> ChatToken | None:
        # None: the token expired before its caller ran (a suspended host). Start over.
        return entry.hand_out() if self._cache.is_alive(entry) else None
