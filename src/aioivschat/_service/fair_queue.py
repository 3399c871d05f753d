"""The queue for permits: a queue for each priority, in which rooms take turns.

The more urgent queue goes first. Within a queue each turn is one permit: a newcomer waits for as
many of each other room as wait before it in its own, and one more. However long the queue of one
room is, it thus takes no more than every second permit from another. Within a room it is first
come, first served. A retry, which has waited already, is the next of its priority.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict

from aioivschat._clock import Clock
from aioivschat._models import Priority
from aioivschat._service.pace import Sent

_HELD_WEIGHT = 0.1
"""Weight of the last request in the mean of the seconds that requests hold their connections; the
first ten have equal weights."""


class _RoomTurns:
    """The reservations that wait with one priority."""

    __slots__ = ("_longer_than", "_rooms", "_waiting")

    def __init__(self) -> None:
        # The room whose turn it is comes first; a room without reservations is not here.
        self._rooms: OrderedDict[str, OrderedDict[QueuedReservation, None]] = OrderedDict()
        # How many rooms have more than 0, 1, 2... waiting: their sum up to a number is how many
        # go in as many turns, without a visit to each of ten thousand rooms.
        self._longer_than = _PrefixSums()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, reservation: QueuedReservation, *, at_head: bool = False) -> None:
        """Add a reservation: as the last of its room, or as the next of all rooms."""
        in_room = self._rooms.setdefault(reservation.room, OrderedDict())
        self._longer_than.add(len(in_room), 1)
        in_room[reservation] = None
        self._waiting += 1
        if at_head:
            in_room.move_to_end(reservation, last=False)
            self._rooms.move_to_end(reservation.room, last=False)

    def remove(self, reservation: QueuedReservation) -> bool:
        """Remove a reservation; return whether it was waiting."""
        in_room = self._rooms.get(reservation.room)
        if in_room is None or reservation not in in_room:
            return False
        del in_room[reservation]
        self._waiting -= 1
        self._longer_than.add(len(in_room), -1)
        if not in_room:
            del self._rooms[reservation.room]
        return True

    def pop_next(self) -> QueuedReservation:
        """Remove and return the first of the room whose turn it is, and end the room's turn."""
        room, in_room = next(iter(self._rooms.items()))
        reservation = next(iter(in_room))
        self.remove(reservation)
        if in_room:
            self._rooms.move_to_end(room)
        return reservation

    def count_before(self, room: str) -> int:
        """Return how many go before a newcomer of a room, at most."""
        return self._longer_than.sum_up_to(len(self._rooms.get(room, ())))


class _PrefixSums:
    """Numbers by index, from 0, and quick sums of the first of them: a Fenwick tree."""

    __slots__ = ("_tree",)

    def __init__(self) -> None:
        # At `i`, from 1, the sum of as many numbers before `i` as the lowest bit of `i` says.
        self._tree = [0, 0]

    def add(self, index: int, amount: int) -> None:
        tree, at = self._tree, index + 1
        while at >= len(tree):
            # Twice as many, of which the last node is the sum of all.
            tree += [0] * (len(tree) - 2) + [tree[-1]]
        while at < len(tree):
            tree[at] += amount
            at += at & -at

    def sum_up_to(self, index: int) -> int:
        tree = self._tree
        at, total = min(index + 1, len(tree) - 1), 0
        while at:
            total += tree[at]
            at &= at - 1
        return total


class Connections:
    """The connections to a region, which the limiters of its accounts share in turns.

    Args:
        clock: where the time comes from.
        most: how many requests may be under way.
    """

    def __init__(self, clock: Clock, most: float = math.inf) -> None:
        self._clock = clock
        self._most = most
        # Of the requests under way: how many, the sum of the moments at which they got their
        # connections, and the seconds for which one lately held it.
        self._under_way = 0
        self._sum_of_starts = 0.0
        self._mean_held = 0.0
        self._ended = 0
        # Limiters with reservations that wait for a connection; whose turn it is comes first.
        self._lacking: dict[QueuedLimiter, None] = {}

    @property
    def free(self) -> float:
        """How many more requests may be under way."""
        return self._most - self._under_way

    def predicted_wait(self, limiter: QueuedLimiter, ahead: int) -> float:
        """Return the seconds until one is free for a newcomer with so many ahead at its limiter."""
        others = (min(other.waiting, ahead + 1) for other in self._lacking if other is not limiter)
        lacking = sum(others, ahead + 1) - self.free
        if lacking <= 0:
            return 0.0
        held = self._mean_held
        if self.free <= 0:
            # On average, half of the time of those under way has passed: so it shows that AWS has
            # become slow before they are over.
            mean_age = self._clock.monotonic() - self._sum_of_starts / self._under_way
            held = max(held, 2 * mean_age)
        return lacking * held / self._most

    def wait(self, limiter: QueuedLimiter) -> None:
        """Have a limiter serve its next reservation once a connection is free."""
        self._lacking.setdefault(limiter)

    def take(self, now: float) -> None:
        """Begin a request."""
        self._under_way += 1
        self._sum_of_starts += now

    def give_back(self, started: float) -> None:
        """End a request that began at a moment."""
        self._under_way -= 1
        # With none under way the sum is 0: errors of rounding do not add up.
        self._sum_of_starts = self._sum_of_starts - started if self._under_way else 0.0
        self._ended += 1
        held = self._clock.monotonic() - started
        self._mean_held += max(_HELD_WEIGHT, 1 / self._ended) * (held - self._mean_held)
        while self._lacking and self.free > 0:
            limiter = next(iter(self._lacking))
            del self._lacking[limiter]
            limiter._serve_next()


class QueuedLimiter:
    """What limiters of all kinds share: a queue for each priority, and connections.

    A permit is granted together with a connection, which is free again when the request is over.

    Args:
        clock: where the time comes from.
        max_waiting: as in :class:`Quota`.
        connections: those of the region; ``None``: as many as it takes.
    """

    def __init__(self, clock: Clock, max_waiting: int, connections: Connections | None) -> None:
        self._clock = clock
        self._max_waiting = max_waiting
        self._connections = connections or Connections(clock)
        self._queues = tuple(_RoomTurns() for _ in Priority)

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

    def _count_before(self, priority: Priority, room: str) -> int:
        """Return how many go before a new reservation."""
        more_urgent = sum(len(queue) for queue in self._queues[:priority])
        return more_urgent + self._queues[priority].count_before(room)

    def _enqueue(self, reservation: QueuedReservation, again: bool) -> None:
        self._queues[reservation.priority].add(reservation, at_head=again)

    def _pop_next(self) -> QueuedReservation:
        return next(queue for queue in self._queues if queue).pop_next()

    # What a reservation asks for.

    async def _wait_to_leave(self, granted_at: float) -> bool:
        """Wait until a request with permit and connection may leave; return whether that took time.

        Args:
            granted_at: when it was granted both.
        """
        raise NotImplementedError

    def _spend_permit(self) -> Sent:
        """Count a permit whose request leaves now."""
        raise NotImplementedError

    def _learn(self, sent: Sent, *, throttled: bool) -> None:
        """Learn from what became of a request."""
        raise NotImplementedError

    def _refund_permit(self, granted_at: float) -> None:
        """Take back a permit that was granted and not used."""
        raise NotImplementedError

    def _serve_next(self) -> None:
        """Grant what can be granted; without a free connection, wait for one."""
        raise NotImplementedError

    def _end_request(self, started: float, *, sent: bool) -> None:
        if not sent:
            self._refund_permit(started)
        self._connections.give_back(started)
        if not sent and self.waiting:
            self._serve_next()

    def _withdraw(self, reservation: QueuedReservation) -> None:
        self._queues[reservation.priority].remove(reservation)

    def _promote(self, reservation: QueuedReservation, priority: Priority) -> None:
        queue = self._queues[reservation.priority]
        if priority < reservation.priority and queue.remove(reservation):
            reservation.priority = priority
            self._queues[priority].add(reservation)


class QueuedReservation:
    """The :class:`Reservation` of a :class:`QueuedLimiter`.

    Args:
        limiter: whose permit it is for.
        priority: its queue.
        room: the room's ARN.
        expected: when the permit is expected, by the monotonic clock.
    """

    __slots__ = (
        "_future",
        "_granted_at",
        "_limiter",
        "_over",
        "_sent",
        "expected",
        "priority",
        "room",
    )

    def __init__(
        self, limiter: QueuedLimiter, priority: Priority, room: str, expected: float
    ) -> None:
        self._limiter = limiter
        self.priority = priority
        self.room = room
        self.expected = expected
        self._future: asyncio.Future[None] | None = None
        self._granted_at: float | None = None
        self._sent: Sent | None = None
        self._over = False

    async def granted(self) -> None:
        """Wait for the permit; a caller cancelled here has released it."""
        if self._granted_at is None:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            except asyncio.CancelledError:
                self.release()
                raise

    async def spend(self) -> bool:
        """Spend the permit, as the request leaves now; return whether that took time."""
        if self._sent is not None or self._over or self._granted_at is None:
            return False
        waited = await self._limiter._wait_to_leave(self._granted_at)
        self._sent = self._limiter._spend_permit()
        return waited

    def served(self) -> None:
        """Tell that the quota let the request through, whether it is over yet or not."""
        if self._sent is not None:
            self._limiter._learn(self._sent, throttled=False)

    def throttled(self) -> None:
        """Tell that the request was throttled."""
        if self._sent is not None:
            self._limiter._learn(self._sent, throttled=True)

    def promote(self, priority: Priority) -> None:
        """Move to the end of a more urgent queue, if it still waits in a less urgent one."""
        self._limiter._promote(self, priority)

    def release(self) -> None:
        """Leave the queue, or give back the connection and the permit that was not spent.

        A permit may have been granted before its caller is cancelled: then it is refunded.
        """
        if self._over:
            return
        self._over = True
        if self._granted_at is None:
            self._limiter._withdraw(self)
        else:
            self._limiter._end_request(self._granted_at, sent=self._sent is not None)

    def grant(self, now: float) -> None:
        """Give permit and connection to whoever waits for it, now or later."""
        self._granted_at = now
        self._limiter._connections.take(now)
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
