"""Requests that are to be minted ahead, where calls for the same identity find them.

A call takes over the flight of such a request, or the place of one that has not had its turn. Calls
go first: for each permit that a call needs, the queues here leave one to it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator

from aioivschat._clock import Clock
from aioivschat._models import Identity, Priority
from aioivschat._service.admission import Call
from aioivschat._service.fences import Fences
from aioivschat._service.limiter import Limiter
from aioivschat._service.minting import TokenFlight

CATCH_UP_SECONDS = 0.05
"""Seconds of lost time that are made up for, as at the limiter."""


class PendingRequest:
    """A request to be minted ahead, with its flight once it has had its turn."""

    __slots__ = ("call", "flight", "queue")

    def __init__(self, call: Call, queue: PendingQueue) -> None:
        self.call = call
        self.queue = queue
        self.flight: TokenFlight | None = None

    def begin(self, flight: TokenFlight) -> None:
        """Take note that its turn has come."""
        self.flight = flight


class PendingQueue:
    """The requests of one ``prewarm`` for one account and region that have not had their turn.

    Attributes:
        has_capacity: set whenever a request has left.
        taken_back: how many left because a caller came for them.
    """

    def __init__(self, limiter: Limiter, clock: Clock) -> None:
        self.limiter = limiter
        self.has_capacity = asyncio.Event()
        self.taken_back = 0
        self._clock = clock
        self._next_permit = clock.monotonic()
        self._requests: OrderedDict[PendingRequest, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[PendingRequest]:
        return iter(self._requests)

    def append(self, call: Call) -> PendingRequest:
        """Add a request at the end."""
        pending = PendingRequest(call, self)
        self._requests[pending] = None
        return pending

    def pop(self) -> PendingRequest:
        """Remove and return the first."""
        pending, _ = self._requests.popitem(last=False)
        return pending

    def take_back(self, pending: PendingRequest) -> None:
        """Remove a request whose caller has come."""
        del self._requests[pending]
        self.note_taken_back()
        self.has_capacity.set()

    def note_taken_back(self) -> None:
        """Count a request that a caller came for."""
        self.taken_back += 1

    def drop(self, pending: PendingRequest) -> None:
        """Remove a request that is not to be sent."""
        del self._requests[pending]
        self.has_capacity.set()

    def next_permit(self, now: float) -> float:
        """Return when the next permit is due that no caller needs."""
        if self._next_permit > now + CATCH_UP_SECONDS:
            # Some callers may have left without using the permit that was left to them.
            wait = self.limiter.predicted_wait(Priority.BACKGROUND)
            self._next_permit = min(self._next_permit, now + wait + CATCH_UP_SECONDS)
        return self._next_permit

    def use_permit(self, moment: float) -> None:
        """Take the permit of a moment; the one after it comes later by as much as one takes."""
        self._next_permit = moment + 1 / self.limiter.rate

    def give_up_permit(self) -> None:
        """Leave the next permit to somebody else."""
        self.use_permit(max(self._next_permit, self._clock.monotonic()))


class PendingRequests:
    """All requests that one service mints ahead.

    Attributes:
        queues: those that leave permits to callers.
    """

    def __init__(self, fences: Fences) -> None:
        self._fences = fences
        # By identity and in order: those under way, then those whose turn is to come.
        self._by_identity: dict[Identity, OrderedDict[PendingRequest, None]] = {}
        self.queues: set[PendingQueue] = set()

    def remember(self, pending: PendingRequest) -> None:
        """Let calls find a request."""
        same = self._by_identity.setdefault(pending.call.identity, OrderedDict())
        same[pending] = None

    def forget(self, pending: PendingRequest) -> None:
        """Let no call find a request any more."""
        identity = pending.call.identity
        same = self._by_identity.get(identity)
        if same is not None:
            same.pop(pending, None)
            if not same:
                del self._by_identity[identity]

    def take_over(self, identity: Identity, deadline: float) -> TokenFlight | None:
        """Return a flight under way that a caller may have; nobody else finds it then.

        One that sleeps past the caller's deadline is left, for :meth:`go_first`.
        """
        for pending in tuple(self._by_identity.get(identity, ())):
            flight = pending.flight
            if flight is None:
                break
            if flight.asleep_until >= deadline:
                continue
            self.forget(pending)
            is_over = flight.done or flight.leaving
            if not is_over and not self._fences.is_fenced(flight.generation, identity):
                return flight
        return None

    def go_first(self, identity: Identity, limiter: Limiter) -> None:
        """Let a call that needs a permit go before what is minted ahead.

        One request less is to be minted ahead for its identity, if any is that nobody can have.
        """
        self.give_up_permits(limiter)
        same = self._by_identity.get(identity)
        if same:
            pending = next(iter(same))
            self.forget(pending)
            if pending.flight is None:
                pending.queue.take_back(pending)
            else:
                pending.flight.supersede()

    def give_up_permits(self, limiter: Limiter, to: PendingQueue | None = None) -> None:
        """Let every queue of a limiter leave a permit to a call, or to one of the queues."""
        for queue in self.queues:
            if queue is not to and queue.limiter is limiter:
                queue.give_up_permit()
