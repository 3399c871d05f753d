"""The queue's limiter: who waits is let go when the pace has a permit due.

To AWS a request counts when it arrives. So a permit is granted first, then a connection is opened
if none is idle, and the permit is spent when the request leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from aioivschat._clock import TICK_SECONDS, Clock
from aioivschat._contexts import call_later
from aioivschat._models import Priority
from aioivschat._service.fair_queue import Connections, QueuedLimiter, QueuedReservation
from aioivschat._service.pace import Pace, Quota, Sent, Shape

_TIMER_MIN_SECONDS = 0.001
"""The shortest timer: uvloop rounds to milliseconds and may call early; one of 0 s would spin."""

_WORTH_TELLING = 0.05
"""Share of the quota by which rate or burst change before observers are told."""


class Reservation(Protocol):
    """A place in the queue for a permit, or the permit."""

    @property
    def expected(self) -> float:
        """When the permit was expected at the time of reservation, by the monotonic clock."""

    async def granted(self) -> None:
        """Wait for the permit; a caller cancelled here has released it."""

    async def spend(self) -> bool:
        """Spend the permit, as the request leaves now; return whether that took time."""

    def promote(self, priority: Priority) -> None:
        """Move to the end of a more urgent queue, if it still waits in a less urgent one."""

    def release(self) -> None:
        """Leave the queue, or end the request: a permit that was not spent is given back."""

    def served(self) -> None:
        """Tell that the quota let the request through, whether it is over yet or not."""

    def throttled(self) -> None:
        """Tell that the request was throttled."""


class Limiter(Protocol):
    """Decides when a request may go to one account and region."""

    @property
    def waiting(self) -> int:
        """How many reservations wait."""

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""

    @property
    def rate(self) -> float:
        """The pace aimed at now, in requests a second."""

    @property
    def burst(self) -> int:
        """How many requests are known to be served at once."""

    @property
    def shape(self) -> Shape:
        """What the quota has shown of its shape."""

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait."""

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> Reservation:
        """Queue for a permit.

        Args:
            priority: which queue.
            room: the room's ARN; rooms that wait take turns.
            again: whether it is for a retry, which has waited: it goes to the head of its queue.
        """


class LocalLimiter(QueuedLimiter):
    """The limiter of one process.

    Args:
        quota: what is allowed.
        clock: where the time comes from.
        on_learnt: called with the rate and the burst when they have changed by a twentieth of
            the quota, or are whole again.
        connections: those of the region; ``None``: as many as it takes.
    """

    def __init__(
        self,
        quota: Quota,
        clock: Clock,
        on_learnt: Callable[[float, int], None] | None = None,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(clock, quota.max_waiting, connections)
        self._pace = Pace(quota, clock.monotonic())
        self._on_learnt = on_learnt
        self._told = self._pace.rate, self._pace.burst
        self._leaving = asyncio.Lock()  # held by who has a permit and a connection, and must wait
        self._timer: asyncio.TimerHandle | None = None

    @property
    def rate(self) -> float:
        """The pace aimed at now, in requests a second."""
        return self._pace.lasting_rate

    @property
    def burst(self) -> int:
        """How many requests are known to be served at once."""
        return int(self._pace.burst)

    @property
    def shape(self) -> Shape:
        """What the quota has shown of its shape."""
        return self._pace.shape

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait.

        It assumes that what was learnt stays, nobody more urgent comes, nobody leaves, no other
        room gets more callers, and AWS answers as fast as it lately did.
        """
        now = self._clock.monotonic()
        ahead = self._count_before(priority, room)
        permit_wait = self._pace.expected(now, ahead) - now
        return max(0.0, permit_wait, self._connections.predicted_wait(self, ahead))

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> QueuedReservation:
        """Grant a permit at once if one is due and nobody waits; else queue for one."""
        now = self._clock.monotonic()
        self._pace.forget_old_throttles(now)
        # With a timer set, no permit is due yet; without one, those who wait lack connections only.
        unhindered = self._timer is None and self._connections.free > 0
        if unhindered and self._pace.due(now) <= now:
            reservation = QueuedReservation(self, priority, room, now)
            self._grant_permit(reservation, now)
            return reservation
        expected = now + self.predicted_wait(priority, room)
        reservation = QueuedReservation(self, priority, room, expected)
        self._enqueue(reservation, again)
        if self._timer is None:
            self._serve_next()
        return reservation

    def _serve_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.monotonic()
        while self.waiting:
            if self._connections.free <= 0:
                self._connections.wait(self)
                return
            due = self._pace.due(now)
            if due > now + TICK_SECONDS:
                self._timer = call_later(max(due - now, _TIMER_MIN_SECONDS), self._serve_next)
                return
            self._grant_permit(self._pop_next(), now)

    def _grant_permit(self, reservation: QueuedReservation, now: float) -> None:
        self._pace.grant(now)
        reservation.grant(now)

    async def _wait_to_leave(self, granted_at: float) -> bool:
        # The loop may have been busy, or connections slow to open: more requests would leave
        # together than a bucket takes.
        waits = self._leaving.locked() or self._wait_before_leaving() > TICK_SECONDS
        if waits:
            async with self._leaving:  # in their order
                while (seconds := self._wait_before_leaving()) > TICK_SECONDS:
                    await self._clock.sleep(max(seconds, _TIMER_MIN_SECONDS))
        return waits

    def _wait_before_leaving(self) -> float:
        return self._pace.leaving() - self._clock.monotonic()

    def _spend_permit(self) -> Sent:
        return self._pace.spend(self._clock.monotonic())

    def _refund_permit(self, granted_at: float) -> None:
        self._pace.refund()

    def _learn(self, sent: Sent, *, throttled: bool) -> None:
        pace, now = self._pace, self._clock.monotonic()
        pace.learn(sent, now, throttled=throttled)
        if self._timer is not None and pace.due(now) <= now:
            self._serve_next()
        self._tell_what_is_learnt()

    def _tell_what_is_learnt(self) -> None:
        """Tell of a change that is worth it: requests teach one by one."""
        pace = self._pace
        told_rate, told_burst = self._told
        change = max(abs(pace.rate - told_rate), abs(pace.burst - told_burst))
        if change >= _WORTH_TELLING * pace.ceiling or told_rate != pace.rate == pace.ceiling:
            self._told = pace.rate, pace.burst
            if self._on_learnt is not None:
                self._on_learnt(self.rate, self.burst)
