"""The pace of requests towards one account and region.

Two gates stand between a call and AWS. The *pace* spaces requests evenly and remembers a little
lost time, so that a busy event loop does not waste the quota. The *window* counts: never more
than the quota in any sliding second. How AWS shapes its 200 a second is not published; what
passes both gates passes a token bucket, a fixed window and a sliding window alike.

Others may use the same quota. The pace therefore follows what comes through: once a second in
which requests were throttled, it becomes the rate that was served plus a probe. While callers
wait, the sum over all processes then stays just above the quota, so none of it is wasted, and the
probe, being equal for all, evens out their shares.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from aioivschat._clock import TICK, Clock
from aioivschat._models import Priority
from aioivschat.errors import InvalidConfiguration

HEADROOM = 0.01
"""Share of the rate held back where the server's shape is unknown: a request that was delayed on
its way lands closer to the ones behind it, and a window of the server's sees one more."""

_CATCH_UP = 0.05
"""Seconds of lost time that the pace makes up for. At 200 a second that is 10 permits, half of
the smallest bucket that is known of such services, so a full one still takes them at once."""

BURST_HELD_BACK = 0.1
"""Share of a known bucket left unused: it fills later by the server's clock than by ours."""

_EPOCH = 1.0
"""Seconds over which served and throttled requests are counted: the longest window AWS is likely
to use. A shorter one would take a window's used-up end for a lasting state."""

_PROBE = 0.05
"""Share of the quota tried beyond what was served. Simulated with four processes that know nothing
of each other: less evens their shares out too slowly, more only adds throttled requests."""

_GROWTH = 2.0
"""Factor for a second in which nothing was throttled: the others have left."""


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
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise InvalidConfiguration("Quota.rate", "a finite number above 0", self.rate)
        if self.burst is not None and self.burst < 1:
            raise InvalidConfiguration("Quota.burst", "at least 1, or None", self.burst)
        if self.max_waiting < 0:
            raise InvalidConfiguration("Quota.max_waiting", "at least 0", self.max_waiting)


class Reservation(Protocol):
    """A place in the queue of a limiter, or a permit."""

    @property
    def expected(self) -> float:
        """When the permit was expected at the time of reservation, by the monotonic clock."""

    async def granted(self) -> None:
        """Wait for the permit. A caller that is cancelled here has given its place back."""

    def promote(self, priority: Priority) -> None:
        """Move to the end of a more urgent queue, if it still waits in a less urgent one."""

    def release(self) -> None:
        """Give the place or the unused permit back; nothing if it was used or given back."""


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
        """Take a place in the queue.

        Args:
            priority: which queue.
            room: the room's ARN; rooms that wait take turns.
            again: whether it is for a retry, which goes to the head of its queue: it has waited.
        """

    def served(self) -> None:
        """Take note that a request got through the quota."""

    def throttled(self) -> None:
        """Take note that a request was throttled."""


class _Queue:
    """Those who wait with one priority: rooms take turns, and in a room the first come is first."""

    __slots__ = ("_longer_than", "_rooms", "_waiting")

    def __init__(self) -> None:
        # The room whose turn it is comes first. One where nobody waits is not here.
        self._rooms: OrderedDict[str, OrderedDict[Place, None]] = OrderedDict()
        # How many rooms have more than 0, 1, 2... who wait: what goes before a newcomer is told
        # without asking each of ten thousand rooms.
        self._longer_than: list[int] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, place: Place, *, at_head: bool = False) -> None:
        """Let one more wait: behind all of its room, or before them, the next of all."""
        line = self._rooms.setdefault(place.room, OrderedDict())
        if len(line) == len(self._longer_than):
            self._longer_than.append(0)
        self._longer_than[len(line)] += 1
        line[place] = None
        self._waiting += 1
        if at_head:
            line.move_to_end(place, last=False)
            self._rooms.move_to_end(place.room, last=False)

    def remove(self, place: Place) -> bool:
        """Let one wait no longer; tell whether it did."""
        line = self._rooms.get(place.room)
        if line is None or place not in line:
            return False
        del line[place]
        self._waiting -= 1
        self._longer_than[len(line)] -= 1
        if not self._longer_than[-1]:
            self._longer_than.pop()
        if not line:
            del self._rooms[place.room]
        return True

    def pop(self) -> Place:
        """Return the one whose turn it is; then it is another room's."""
        room, line = next(iter(self._rooms.items()))
        place = next(iter(line))
        self.remove(place)
        if line:
            self._rooms.move_to_end(room)
        return place

    def before(self, room: str) -> int:
        """Return how many go before a newcomer of a room, at most."""
        here = len(self._rooms.get(room, ()))
        if here < len(self._rooms):
            return sum(self._longer_than[: here + 1])
        others = (len(line) for name, line in self._rooms.items() if name != room)
        return here + sum(min(waiting, here + 1) for waiting in others)


class QueuedLimiter:
    """What limiters of all kinds share: places in queues, one for each priority.

    The more urgent queue goes first. Within a queue, rooms share fairly: they take turns, each
    turn one permit, so that a newcomer waits for as many of each other room as wait before it in
    its own, and one more. A storm in one room thus delays another by no more than every second
    permit, however long it is. Within a room it is first come, first served; a retry, which has
    waited, comes next of all.

    Args:
        max_waiting: as in :class:`Quota`.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queues = tuple(_Queue() for _ in Priority)

    @property
    def waiting(self) -> int:
        """How many reservations wait."""
        return sum(map(len, self._queues))

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return self.waiting >= self._max_waiting and self.predicted_wait() > 0

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait."""
        raise NotImplementedError

    def _ahead(self, priority: Priority, room: str) -> int:
        """Return how many go before a new reservation."""
        more_urgent = sum(len(queue) for queue in self._queues[:priority])
        return more_urgent + self._queues[priority].before(room)

    def _enqueue(self, place: Place, again: bool) -> None:
        self._queues[place.priority].add(place, at_head=again)

    def _pop(self) -> Place:
        """Return the next of all who wait."""
        return next(queue for queue in self._queues if queue).pop()

    def _spend(self) -> None:
        """Take note that a permit is being used."""
        raise NotImplementedError

    def _refund(self) -> None:
        """Take a permit back that was given and not used."""
        raise NotImplementedError

    def _withdraw(self, place: Place) -> None:
        self._queues[place.priority].remove(place)

    def _promote(self, place: Place, priority: Priority) -> None:
        if priority < place.priority and self._queues[place.priority].remove(place):
            place.priority = priority
            self._queues[priority].add(place)


class LocalLimiter(QueuedLimiter):
    """The limiter of one process.

    Args:
        quota: what is allowed.
        clock: where the time comes from.
        on_rate: called with the new rate when what was learnt changes it.
    """

    def __init__(
        self, quota: Quota, clock: Clock, on_rate: Callable[[float], None] | None = None
    ) -> None:
        super().__init__(quota.max_waiting)
        self._clock = clock
        self._quota = quota
        self._on_rate = on_rate
        if quota.burst is None:
            self._ceiling = quota.rate * (1 - HEADROOM)
            self._burst = max(1.0, quota.rate * _CATCH_UP)
            # Below one a second, the window is as long as one permit takes.
            self._per_window = max(1, math.floor(quota.rate))
            self._window = max(1.0, self._per_window / quota.rate) / (1 - HEADROOM)
            self._recent: deque[float] = deque(maxlen=self._per_window)
        else:
            self._ceiling = quota.rate
            self._burst = max(1.0, quota.burst * (1 - BURST_HELD_BACK))
            # A bucket has no window: the pace alone bounds it.
            self._per_window = sys.maxsize
            self._window = 0.0
            self._recent = deque(maxlen=0)
        self._rate = self._ceiling
        self._next = -math.inf  # when the next permit is due, were none owed from lost time
        self._unused = 0  # permits given to callers that have not run since
        self._timer: asyncio.TimerHandle | None = None
        self._epoch_end = clock.monotonic() + _EPOCH
        self._served = 0
        self._throttled = 0

    @property
    def rate(self) -> float:
        """The pace aimed at now, in requests a second."""
        return self._rate

    def predicted_wait(self, priority: Priority = Priority.NORMAL, room: str = "") -> float:
        """Return the seconds that a new reservation for a room would wait.

        It assumes that the rate stays, nobody more urgent comes, nobody leaves, and no other room
        gets more callers.
        """
        now = self._clock.monotonic()
        return max(self._due(now), self._paced(now, self._ahead(priority, room)), now) - now

    def reserve(
        self, priority: Priority = Priority.NORMAL, *, room: str = "", again: bool = False
    ) -> Place:
        """Take a place in the queue, or a permit at once if nobody waits and one is due."""
        now = self._clock.monotonic()
        self._learn(now)
        # Without a timer nobody waits; with one, none is due yet.
        if self._timer is None and self._due(now) <= now:
            self._unused += 1
            return Place(self, priority, room, now, granted=True)
        place = Place(self, priority, room, now + self.predicted_wait(priority, room))
        self._enqueue(place, again)
        if self._timer is None:
            self._grant_due()
        return place

    def served(self) -> None:
        """Take note that a request got through the quota."""
        self._learn(self._clock.monotonic())
        self._served += 1

    def throttled(self) -> None:
        """Take note that a request was throttled."""
        self._learn(self._clock.monotonic())
        self._throttled += 1

    def _due(self, now: float) -> float:
        """Return when the next permit may be given."""
        paced = self._paced(now)
        recent = self._recent
        over = len(recent) + self._unused - self._per_window
        if over < 0:
            return paced
        # Permits that were given and not used yet count from now on.
        return max(paced, (recent[over] if over < len(recent) else now) + self._window)

    def _paced(self, now: float, ahead: int = 0) -> float:
        """Return when the pace allows one more after so many others."""
        later = self._unused + ahead + 1 - self._burst
        return max(self._next, now) + later / self._rate

    def _grant_due(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        self._learn(now)
        while self.waiting:
            due = self._due(now)
            if due > now + TICK:
                self._timer = asyncio.get_running_loop().call_later(due - now, self._grant_due)
                return
            self._unused += 1
            self._pop()._grant()

    def _spend(self) -> None:
        # Not when it was given: a busy loop may have kept its taker waiting, and to AWS a request
        # counts when it comes.
        now = self._clock.monotonic()
        self._unused -= 1
        # Lost time beyond the burst is lost.
        self._next = max(self._next, now) + 1 / self._rate
        self._recent.append(now)

    def _refund(self) -> None:
        self._unused -= 1
        if self._timer is not None:
            self._timer.cancel()
        self._grant_due()

    def _learn(self, now: float) -> None:
        """Close the epochs that have passed and set the rate by what they showed."""
        if now < self._epoch_end:
            return
        before = self._rate
        clean_epochs = 1 + (now - self._epoch_end) // _EPOCH
        if self._throttled:
            clean_epochs -= 1
            # One is presumed served: a single unlucky request must not shut the door.
            share = (self._served + 1) / (self._served + 1 + self._throttled)
            self._rate = self._rate * share + _PROBE * self._quota.rate
        # A long rest restores the whole rate; a larger exponent could overflow.
        self._rate = min(self._ceiling, self._rate * _GROWTH ** min(clean_epochs, 50))
        # What was taken ahead of time is as many permits as before: else a slower pace, at which
        # the burst is worth more time, would begin with a burst of its own.
        if self._next > now:
            self._next = now + (self._next - now) * before / self._rate
        self._served = self._throttled = 0
        self._epoch_end = now + _EPOCH
        if self._rate != before and self._on_rate is not None:
            self._on_rate(self._rate)


class Place:
    """A reservation at a limiter of this process or of a fleet."""

    __slots__ = ("_future", "_granted", "_limiter", "_over", "expected", "priority", "room")

    def __init__(
        self,
        limiter: QueuedLimiter,
        priority: Priority,
        room: str,
        expected: float,
        *,
        granted: bool = False,
    ) -> None:
        self._limiter = limiter
        self.priority = priority
        self.room = room
        self.expected = expected
        self._future: asyncio.Future[None] | None = None
        self._granted = granted
        self._over = False

    async def granted(self) -> None:
        """Wait for the permit. A caller that is cancelled here has given its place back."""
        if not self._granted:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            except asyncio.CancelledError:
                self.release()
                raise
        if not self._over:
            self._over = True
            self._limiter._spend()

    def promote(self, priority: Priority) -> None:
        """Move to the end of a more urgent queue, if it still waits in a less urgent one."""
        self._limiter._promote(self, priority)

    def release(self) -> None:
        """Give the place or the unused permit back; nothing if it was used or given back."""
        if self._over:
            return
        self._over = True
        if self._granted:
            self._limiter._refund()
        else:
            self._limiter._withdraw(self)

    def _grant(self) -> None:
        self._granted = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
