"""The pace of requests towards one account and region.

Two gates stand between a call and AWS. The *pace* spaces requests evenly and makes up for a little
lost time, so that a busy event loop does not waste the quota. The *window* counts: never more
than the quota in any sliding second. How AWS shapes its 200 a second is not published; what
passes both gates passes a token bucket, a fixed window and a sliding window alike.

To AWS a request counts when it arrives. So a permit is granted first, then a connection is opened
if none is idle, and the permit is spent when the request leaves.

Others may use the same quota. The pace therefore follows what comes through: after a second in
which requests were throttled, it becomes the rate that was served plus a probe. While callers
wait, the sum over all processes then stays just above the quota, so none of it is wasted; and as
the probe is equal for all, their shares even out.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aioivschat._clock import TICK_SECONDS, Clock
from aioivschat._contexts import call_later
from aioivschat._models import Priority
from aioivschat._service.fair_queue import Connections, QueuedLimiter, QueuedReservation
from aioivschat.errors import require_number

HEADROOM = 0.01
"""Share of the rate held back where the server's shape is unknown: a request that was delayed on
its way arrives closer to those behind it, and the server's window sees one more."""

_CATCH_UP_SECONDS = 0.05
"""Seconds of lost time that the pace makes up for. At 200 a second that is 10 permits, half of
the smallest bucket that is known of such services, so a full one still takes them at once."""

_TIMER_MIN_SECONDS = 0.001
"""The shortest timer: uvloop rounds to milliseconds and may call early; one of 0 s would spin."""

BURST_HELD_BACK = 0.1
"""Share of a known bucket left unused: by the server's clock it fills later than by ours."""

_EPOCH_SECONDS = 1.0
"""Seconds over which served and throttled requests are counted: the longest window AWS is likely
to use. In a shorter epoch, a window that is used up would look like a lower quota."""

_PROBE_SHARE = 0.05
"""Share of the quota tried beyond what was served. Simulated with four processes that know nothing
of each other: less evens their shares out too slowly, more only adds throttled requests."""

_GROWTH_FACTOR = 2.0
"""Factor of the rate after a second without a throttled request: others have left."""


@dataclass(frozen=True, slots=True)
class Quota:
    """What AWS allows per account and region.

    Args:
        rate: requests a second, more than 0. ``CreateChatToken`` has 200, not adjustable (IVS
            Chat service quotas). Without ``burst``, a fraction above a whole number is not used.
        burst: size of the server's token bucket, where it is known to be one; at least 1. The
            limiter then uses nine tenths of it at once. ``None``: unknown, so never more than
            ``rate`` in any sliding second.
        max_waiting: calls that may wait for a permit; one more is refused as overloaded.

    Raises:
        InvalidConfiguration: if a number is out of its range.
    """

    rate: float = 200.0
    burst: int | None = None
    max_waiting: int = 100_000

    def __post_init__(self) -> None:
        require_number("Quota.rate", self.rate, above=0)
        if self.burst is not None:
            require_number("Quota.burst", self.burst, least=1, whole=True)
        require_number("Quota.max_waiting", self.max_waiting, least=0, whole=True)


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

    def served(self) -> None:
        """Count a request that the quota let through."""

    def throttled(self) -> None:
        """Count a request that was throttled."""


class LocalLimiter(QueuedLimiter):
    """The limiter of one process.

    Args:
        quota: what is allowed.
        clock: where the time comes from.
        on_rate: called with the new rate when what was learnt changes it.
        connections: those of the region; ``None``: as many as it takes.
    """

    def __init__(
        self,
        quota: Quota,
        clock: Clock,
        on_rate: Callable[[float], None] | None = None,
        connections: Connections | None = None,
    ) -> None:
        super().__init__(clock, quota.max_waiting, connections)
        self._quota = quota
        self._on_rate = on_rate
        if quota.burst is None:
            self._ceiling = quota.rate * (1 - HEADROOM)
            self._burst = max(1.0, quota.rate * _CATCH_UP_SECONDS)
            self._bucket = 2 * self._burst
            # Below one a second, the window is as long as one permit takes.
            self._per_window = max(1, math.floor(quota.rate))
            self._window = max(1.0, self._per_window / quota.rate) / (1 - HEADROOM)
        else:
            self._ceiling = quota.rate
            self._burst = max(1.0, quota.burst * (1 - BURST_HELD_BACK))
            self._bucket = float(quota.burst)
            # A bucket has no window: the pace alone keeps within it.
            self._per_window = sys.maxsize
            self._window = 0.0
        self._rate = self._ceiling
        # When the next permit may be granted, and spent, if no lost time is made up for.
        self._next_granted = self._next_spent = -math.inf
        self._leaving = asyncio.Lock()  # held by who has a permit and a connection, and must wait
        self._unspent = 0  # permits granted to requests that have not left since
        self._recent: deque[float] = deque()  # when permits were spent, within the window
        self._timer: asyncio.TimerHandle | None = None
        self._epoch_end = clock.monotonic() + _EPOCH_SECONDS
        self._served = 0
        self._throttled = 0

    @property
    def rate(self) -> float:
        """The pace aimed at now, in requests a second."""
        return self._rate

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait.

        It assumes that the rate stays, nobody more urgent comes, nobody leaves, no other room
        gets more callers, and AWS answers as fast as it lately did.
        """
        now = self._clock.monotonic()
        ahead = self._count_before(priority, room)
        due = max(self._permit_due(now), self._paced_due(now, ahead), now)
        return max(due - now, self._connections.predicted_wait(self, ahead))

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> QueuedReservation:
        """Grant a permit at once if one is due and nobody waits; else queue for one."""
        now = self._clock.monotonic()
        self._adapt_rate(now)
        # With a timer set, no permit is due yet; without one, those who wait lack connections only.
        unhindered = self._timer is None and self._connections.free > 0
        if unhindered and self._permit_due(now) <= now:
            reservation = QueuedReservation(self, priority, room, now)
            self._grant_permit(reservation, now)
            return reservation
        expected = now + self.predicted_wait(priority, room)
        reservation = QueuedReservation(self, priority, room, expected)
        self._enqueue(reservation, again)
        if self._timer is None:
            self._serve_next()
        return reservation

    def served(self) -> None:
        """Count a request that the quota let through."""
        self._adapt_rate(self._clock.monotonic())
        self._served += 1

    def throttled(self) -> None:
        """Count a request that was throttled."""
        self._adapt_rate(self._clock.monotonic())
        self._throttled += 1

    def _permit_due(self, now: float) -> float:
        """Return when the next permit may be granted."""
        paced = self._paced_due(now)
        recent = self._recent
        over = len(recent) + self._unspent - self._per_window
        if over < 0:
            return paced
        # Permits that are granted and not spent yet will count from now at the earliest.
        return max(paced, (recent[over] if over < len(recent) else now) + self._window)

    def _paced_due(self, now: float, ahead: int = 0) -> float:
        """Return when the pace allows a permit that so many others go before."""
        return max(self._next_granted, now) + (ahead + 1 - self._burst) / self._rate

    def _serve_next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.monotonic()
        self._adapt_rate(now)
        while self.waiting:
            if self._connections.free <= 0:
                self._connections.wait(self)
                return
            due = self._permit_due(now)
            if due > now + TICK_SECONDS:
                self._timer = call_later(max(due - now, _TIMER_MIN_SECONDS), self._serve_next)
                return
            self._grant_permit(self._pop_next(), now)

    def _grant_permit(self, reservation: QueuedReservation, now: float) -> None:
        # Lost time beyond the burst is not made up for.
        self._next_granted = max(self._next_granted, now) + 1 / self._rate
        self._unspent += 1
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
        return self._next_spent - (self._bucket - 1) / self._rate - self._clock.monotonic()

    def _spend_permit(self) -> None:
        # The permit counts from now, not from when it was granted: to AWS, a request counts when
        # it arrives.
        now = self._clock.monotonic()
        self._next_spent = max(self._next_spent, now) + 1 / self._rate
        self._unspent -= 1
        recent = self._recent
        recent.append(now)
        while recent and recent[0] <= now - self._window:
            recent.popleft()

    def _refund_permit(self, granted_at: float) -> None:
        self._unspent -= 1
        self._next_granted -= 1 / self._rate

    def _adapt_rate(self, now: float) -> None:
        """Set the rate by what was served and throttled, if an epoch has ended since."""
        if now < self._epoch_end:
            return
        before = self._rate
        clean_epochs = 1 + (now - self._epoch_end) // _EPOCH_SECONDS
        if self._throttled:
            clean_epochs -= 1
            # Count one more as served: a single unlucky request must not stop everything.
            share = (self._served + 1) / (self._served + 1 + self._throttled)
            self._rate = self._rate * share + _PROBE_SHARE * self._quota.rate
        # A long rest restores the whole rate; a larger exponent could overflow.
        self._rate = min(self._ceiling, self._rate * _GROWTH_FACTOR ** min(clean_epochs, 50))
        # Rescale the debt, so that a slower rate does not start with a new burst.
        stretch = before / self._rate
        self._next_granted = now + max(0.0, self._next_granted - now) * stretch
        self._next_spent = now + max(0.0, self._next_spent - now) * stretch
        self._served = self._throttled = 0
        self._epoch_end = now + _EPOCH_SECONDS
        if self._rate != before and self._on_rate is not None:
            self._on_rate(self._rate)
