"""From a call to its token: one that is there, a flight under way, or a new flight."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from aioivschat._clock import Clock
from aioivschat._contexts import time_limit
from aioivschat._events import Delivered, Joined, Observers, Source
from aioivschat._models import (
    KEY_MAX_CHARACTERS,
    Attempt,
    ChatToken,
    Priority,
    RoomArn,
    SharingKey,
    TokenRequest,
    plain,
)
from aioivschat._service.admission import NEVER, Admission, Call
from aioivschat._service.cache import Entry, TokenCache
from aioivschat._service.fences import Fences
from aioivschat._service.lifecycle import Lifecycle
from aioivschat._service.limiters import Limiters
from aioivschat._service.minting import Minter, TokenFlight
from aioivschat._service.pending import PendingRequests
from aioivschat._service.signing_in import SignIns
from aioivschat._service.singleflight import FlightStopped
from aioivschat._service.stats import Counters
from aioivschat._service.stock import TokenStock
from aioivschat.errors import (
    ChatTokenError,
    DeadlineExceeded,
    InvalidRequest,
    as_number,
    describe_number,
)

note_flight: ContextVar[Callable[[TokenFlight], None] | None] = ContextVar(
    "note_flight", default=None
)
"""Called with each flight that a call waits for, which shows what was sent for the call."""


@dataclass(eq=False, kw_only=True)
class Issuer:
    """Issues tokens to callers."""

    lifecycle: Lifecycle
    limiters: Limiters
    sign_ins: SignIns
    cache: TokenCache
    stock: TokenStock
    fences: Fences
    admission: Admission
    minter: Minter
    pending: PendingRequests
    counters: Counters
    clock: Clock
    observers: Observers

    def find_delivered(self, key: SharingKey | tuple[Any, ...]) -> Entry | None:
        """Return the delivered token of a key, or of a tuple that merely equals an identity."""
        entry = self.cache.get(key)
        if entry is not None and self.observers:
            self.observers.tell(Delivered(entry.identity.at(0), Source.CACHE, 0.0))
        return entry

    def take_available(self, request: TokenRequest, key: SharingKey | None) -> ChatToken | None:
        """Return a token that is there already: delivered under the key, or in stock."""
        entry = self.find_delivered(key) if key is not None else None
        if entry is None:
            entry = self.stock.take(request.identity)
            if entry is None:
                return None
            self.counters.stock += 1
            if key is not None:
                self.cache.put(key, entry)
            if self.observers:
                self.observers.tell(Delivered(request.room, Source.STOCK, 0.0))
        return entry.hand_out()

    async def wait_for_token(
        self,
        request: TokenRequest,
        key: SharingKey | None,
        priority: Priority,
        timeout: float | None,
    ) -> ChatToken:
        """Return a token that is not there yet, within ``timeout`` seconds.

        Raises:
            InvalidRequest: ``timeout`` is out of its range.
            Overloaded: it cannot come in time.
            CredentialsFailed: it did not, for lack of credentials.
            DeadlineExceeded: it did not.
        """
        room = RoomArn.parse(request.room)
        if timeout is None:
            return await self._join_until_token(Call(request, room, key, priority, NEVER))
        if not as_number(timeout) > 0:
            limit = "a number above 0 s, or None"
            raise InvalidRequest("timeout", limit, describe_number(timeout))
        timeout = as_number(timeout)
        call = Call(request, room, key, priority, self.clock.monotonic() + timeout)
        try:
            async with time_limit(timeout):
                return await self._join_until_token(call)
        except TimeoutError as error:
            if isinstance(error, ChatTokenError):
                raise
        # What it waited for says more than that it did.
        raise self.sign_ins.find_failure(room.region) or DeadlineExceeded(timeout)

    async def _join_until_token(self, call: Call) -> ChatToken:
        started = self.clock.monotonic()
        region = call.room.region
        while True:
            flight = self.minter.flights.find(call.key) if call.key is not None else None
            is_leaving = flight is not None and flight.leaving
            # A permit is worth nothing until there are a client and credentials to use it with.
            needs_sign_in = flight is None and not self.sign_ins.is_ready(region)
            if is_leaving or needs_sign_in:
                if needs_sign_in:
                    await self.sign_ins.wait(region, started, call.deadline)
                if flight is not None and flight.leaving:
                    await flight.ended()
                # Opening, or the end of that flight, may have taken a while.
                self.lifecycle.check_open()
                token = self.take_available(call.request, call.key)
                if token is not None:
                    return token
                continue
            flight = self._join_or_start_flight(flight, call)
            note = note_flight.get()
            if note is not None:
                note(flight)
            try:
                token = await self.minter.flights.join(flight, self._hand_out_alive)
            except FlightStopped:
                if not flight.superseded:
                    raise self.lifecycle.explain_cancellation("minting a token") from None
                token = None
            if token is not None:
                if self.observers:
                    waited = self.clock.monotonic() - started
                    self.observers.tell(Delivered(call.request.room, flight.source, waited))
                return token
            # The service may be closing by now: that waits for no flight that starts afterwards.
            self.lifecycle.check_open()

    def _join_or_start_flight(self, flight: TokenFlight | None, call: Call) -> TokenFlight:
        """Return the flight of the call's key, one for the stock that it takes over, or a new one.

        A flight that sleeps for longer than the call has is not joined: a new one takes its place.

        Args:
            flight: under way for the call's key, if any is.
            call: the call.
        """
        identity = call.identity
        sleeper: TokenFlight | None = None
        if flight is not None and flight.asleep_until >= call.deadline:
            flight, sleeper = None, flight
        if flight is not None and not self.fences.is_fenced(flight.generation, identity):
            self.admission.check_turn(call, flight.expected_for(call, self.clock.monotonic()))
            self.counters.joined += 1
            if self.observers:
                self.observers.tell(Joined(call.request.room))
            flight.extend_for(call)
            return flight
        flight = self.pending.take_over(identity, call.deadline)
        if flight is not None:
            self.minter.hand_over(flight, call)
        else:
            limiter = self.limiters.get_or_make(call.room)
            flight = self.minter.make_flight(call, limiter)
            self.pending.go_first(identity, limiter)
        if call.key is not None:
            self.minter.flights.share(flight, call.key)
        if sleeper is not None:
            sleeper.supersede()
        return flight

    def _hand_out_alive(self, entry: Entry) -> ChatToken | None:
        # None: the token expired before its caller ran (a suspended host). Start over.
        return entry.hand_out() if self.cache.is_alive(entry) else None


def sharing_key(
    request: TokenRequest, idempotency_key: str | None, fresh: bool
) -> SharingKey | None:
    """Return what calls must agree on to share a token; ``None``: this call shares none.

    Raises:
        InvalidRequest: the key breaks a limit, or excludes `fresh`.
    """
    try:
        if not issubclass(type(request), TokenRequest):
            raise InvalidRequest("request", "a TokenRequest", type(request).__name__)
        if idempotency_key is None:
            return None if fresh else request.identity
        if fresh:
            raise InvalidRequest("idempotency_key", "left out when fresh is true", "both")
        idempotency_key = plain(idempotency_key)
        if type(idempotency_key) is not str or not 1 <= len(idempotency_key) <= KEY_MAX_CHARACTERS:
            limit = f"1 to {KEY_MAX_CHARACTERS} characters"
            raise InvalidRequest("idempotency_key", limit, "other")
        return Attempt((request.identity, idempotency_key))
    finally:
        del idempotency_key  # out of tracebacks that show locals
