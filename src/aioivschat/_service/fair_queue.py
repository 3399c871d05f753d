"""The queue for permits: a queue for each priority, in which rooms take turns.

The more urgent queue goes first. Within a queue each turn is one permit: a newcomer waits for as
many of each other room as wait before it in its own, and one more. However long the queue of one
room is, it thus takes no more than every second permit from another. Within a room it is first
come, first served. A retry, which has waited already, is the next of its priority.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from aioivschat._models import Priority


class _RoomTurns:
    """The reservations that wait with one priority."""

    __slots__ = ("_longer_than", "_rooms", "_waiting")

    def __init__(self) -> None:
        # The room whose turn it is comes first; a room without reservations is not here.
        self._rooms: OrderedDict[str, OrderedDict[QueuedReservation, None]] = OrderedDict()
        # How many rooms have more than 0, 1, 2... waiting: `count_before` sums a few of these
        # instead of visiting each of ten thousand rooms.
        self._longer_than: list[int] = []
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, reservation: QueuedReservation, *, at_head: bool = False) -> None:
        """Add a reservation: as the last of its room, or as the next of all rooms."""
        in_room = self._rooms.setdefault(reservation.room, OrderedDict())
        if len(in_room) == len(self._longer_than):
            self._longer_than.append(0)
        self._longer_than[len(in_room)] += 1
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
        self._longer_than[len(in_room)] -= 1
        if not self._longer_than[-1]:
            self._longer_than.pop()
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
        here = len(self._rooms.get(room, ()))
        if here < len(self._rooms):
            return sum(self._longer_than[: here + 1])
        others = (len(in_room) for name, in_room in self._rooms.items() if name != room)
        return here + sum(min(waiting, here + 1) for waiting in others)


class QueuedLimiter:
    """What limiters of all kinds share: the queues, one for each priority.

    Args:
        max_waiting: as in :class:`Quota`.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
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

    def _spend_permit(self) -> None:
        """Count a permit whose request is about to be sent."""
        raise NotImplementedError

    def _refund_permit(self) -> None:
        """Take back a permit that was granted and not used."""
        raise NotImplementedError

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
        granted: whether the permit is granted already.
    """

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
        self._over = False  # the permit was spent, or the reservation released

    async def granted(self) -> None:
        """Wait for the permit and spend it; a caller cancelled here has released it."""
        if not self._granted:
            self._future = asyncio.get_running_loop().create_future()
            try:
                await self._future
            except asyncio.CancelledError:
                self.release()
                raise
        if not self._over:
            self._over = True
            self._limiter._spend_permit()

    def promote(self, priority: Priority) -> None:
        """Move to the end of a more urgent queue, if it still waits in a less urgent one."""
        self._limiter._promote(self, priority)

    def release(self) -> None:
        """Leave the queue, or give the unused permit back; nothing if that was done or it is spent.

        A permit may have been granted before its caller is cancelled: then it is refunded.
        """
        if self._over:
            return
        self._over = True
        if self._granted:
            self._limiter._refund_permit()
        else:
            self._limiter._withdraw(self)

    def grant(self) -> None:
        """Give the permit to whoever waits for it, now or later."""
        self._granted = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
