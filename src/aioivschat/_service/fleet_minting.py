"""Mints for a fleet: claims a token there first, and publishes what was minted afterwards."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from aioivschat._models import Priority
from aioivschat._service.admission import Call
from aioivschat._service.cache import Entry
from aioivschat._service.fleet import Busy, Fenced, Held, SharedFlight, SharedTokens
from aioivschat._service.limiter import Limiter
from aioivschat._service.minting import Minter, TokenFlight

_LEASE_MARGIN_SECONDS = 10.0
"""How long beyond the expected wait no other process may mint for the same key: time for a request
with some retries. After that another process mints too, and one of the two requests is wasted."""

_LEASE_KEPT_SECONDS = 1.0
"""How long a flight may sleep before a retry with its lease. For longer, it gives the lease back:
callers at other processes may have less time than that."""


class _NoReservationYet:
    """The reservation of a flight that may find its token in the fleet, and need no permit."""

    expected = float("-inf")

    async def granted(self) -> None:
        """Nothing to wait for."""

    async def spend(self) -> bool:
        """Nothing to spend."""
        return False

    def promote(self, priority: Priority) -> None:
        """Nothing to promote."""

    def served(self) -> None:
        """Nothing was sent."""

    def throttled(self) -> None:
        """Nothing was sent."""

    def release(self) -> None:
        """Nothing to give back."""


_NO_RESERVATION_YET = _NoReservationYet()


@dataclass(eq=False, kw_only=True)
class FleetMinter(Minter):
    """Mints the tokens of flights in a fleet; `tokens` are those of the fleet."""

    tokens: SharedTokens
    stock_is_shared: ClassVar[bool] = True

    @property
    def rejected(self) -> int:
        """How many values of the fleet could not be opened."""
        return self.tokens.rejected

    def make_flight(self, call: Call, limiter: Limiter) -> TokenFlight:
        """Return a flight for a caller, which queues for a permit if its claim finds no token."""
        generation, now = self.fences.generation, self.clock.monotonic()
        shared = self.tokens.flight(call.identity, call.key)
        return TokenFlight(call, limiter, _NO_RESERVATION_YET, generation, now, shared)

    def hand_over(self, flight: TokenFlight, call: Call) -> None:
        """Give a flight for the stock to a caller, for whom it will be published."""
        super().hand_over(flight, call)
        flight.adopt(self.tokens.flight(call.identity, call.key))

    def invalidate(self, room: str | None, user: str | None) -> None:
        """Let every process forget the tokens of a room, of a user, or of a user in a room."""
        try:
            self.lifecycle.check_open()
            self.tokens.invalidate(room, user)
            super().invalidate(room, user)
        finally:
            del room, user  # out of tracebacks that show locals

    async def settle(self) -> None:
        """Wait until the fleet has all that it was given, or cannot be reached."""
        await self.tokens.settled()

    async def _bring_token(self, flight: TokenFlight) -> Entry:
        try:
            while True:
                entry = await self._claim(flight)
                if entry is None:
                    entry = await self._mint(flight)
                if entry.handed_out:
                    self._deliver(flight, entry)
                    return entry
                # Not before: a call may have taken the flight over from prewarming meanwhile.
                if flight.shared is None or flight.key is None or not flight.callers:
                    return entry
                published = await self._publish(flight, flight.shared, entry)
                if published is not None:
                    return published
                flight.start_over(_NO_RESERVATION_YET)
                await flight.shared.landed()
        finally:
            if flight.shared is not None:
                flight.shared.close()

    async def _claim(self, flight: TokenFlight) -> Entry | None:
        """Ask the fleet for a token; without one, queue for a permit to mint it, or for a retry."""
        shared, limiter = flight.shared, flight.limiter
        # A flight for the stock is there to mint, and has its reservation.
        if shared is None or flight.reservation is not _NO_RESERVATION_YET:
            return None
        while True:
            asked = self.clock.monotonic()
            # Committed while the claim runs: cancelling could drop a claimed token.
            flight.commit()
            wait = limiter.predicted_wait(flight.call.priority, flight.call.request.room)
            answer = await shared.claim(wait + _LEASE_MARGIN_SECONDS)
            if isinstance(answer, Held):
                return self._entry_of(flight, answer, asked)
            flight.uncommit()
            if not flight.callers or not self.lifecycle.is_open:
                flight.stop()
            # `stop()` cancelled this very task: CancelledError is raised at this await.
            await (shared.landed() if isinstance(answer, Busy) else asyncio.sleep(0))
            if answer is None:
                if not flight.sent:
                    self.admission.check_queue(flight.call, limiter)
                flight.reserve(again=flight.sent > 0)
                return None

    def _let_others_mint(self, flight: TokenFlight, delay: float) -> None:
        if flight.shared is not None and delay > _LEASE_KEPT_SECONDS:
            flight.shared.close()
            flight.start_over(_NO_RESERVATION_YET)

    async def _resume(self, flight: TokenFlight) -> Entry | None:
        if flight.reservation is _NO_RESERVATION_YET:
            return await self._claim(flight)
        return await super()._resume(flight)

    async def _publish(
        self, flight: TokenFlight, shared: SharedFlight, entry: Entry
    ) -> Entry | None:
        """Make a token the attempt's in the whole fleet; ``None``: another process mints for it."""
        asked = self.clock.monotonic()
        life, age = entry.monotonic_end - asked, asked - flight.started
        answer = await shared.publish(entry.token, life, age)
        if answer is None or isinstance(answer, Fenced):
            flight.note_published()
            if answer is None:
                self._deliver(flight, entry)
            return entry
        # Another process was faster: its token is the attempt's, and this one becomes stock.
        self._put_into_stock(flight, entry)
        if not isinstance(answer, Held):
            return None
        entry = self._entry_of(flight, answer, asked)
        self._deliver(flight, entry)
        return entry

    def _entry_of(self, flight: TokenFlight, held: Held, asked: float) -> Entry:
        """Take a token of the fleet, whose life counts from the moment it was asked for."""
        self.counters.shared += 1
        flight.note_token_of_fleet()
        end = asked + held.life
        wall_end = self.clock.wall() + end - self.clock.monotonic()
        token = held.token
        return Entry(flight.call.identity, token, end, wall_end, flight.generation, token.reused)

    def _put_into_stock(self, flight: TokenFlight, entry: Entry) -> None:
        now = self.clock.monotonic()
        self.tokens.stock(
            flight.call.identity,
            entry.token,
            life=entry.monotonic_end - now,
            age=now - flight.started,
            refused=lambda: self.stock.restock(entry),
        )
        self._note_stocked(flight)
