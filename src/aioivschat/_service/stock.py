"""The stock: tokens that nobody has been handed, each for one later call.

Bounded and synchronous. All tokens live equally long, so the oldest expire first: each insertion
sweeps a little at the old end, and a timer sweeps what expires while nothing is inserted.
"""

from __future__ import annotations

import asyncio
from collections import deque

from aioivschat._clock import Clock
from aioivschat._contexts import call_later
from aioivschat._events import ExpiredUnused, Observers
from aioivschat._models import Identity
from aioivschat._service.cache import SWEPT_PER_INSERTION, CachePolicy, Entry, TokenCache

_SWEPT_AT_A_TIME = 64
"""Tokens that the timer drops before others have their turn on the event loop."""


class _Stocked:
    """An entry in both queues of the stock: what is taken leaves one at once, the other later."""

    __slots__ = ("entry", "taken")

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.taken = False


class TokenStock:
    """Undelivered tokens by identity.

    Attributes:
        capacity: how many are held at most.
        expired_unused: how many were dropped before anybody was given them.
    """

    def __init__(self, policy: CachePolicy, cache: TokenCache) -> None:
        self.capacity = policy.max_stock
        self.expired_unused = 0
        self._cache = cache
        self._margin = policy.min_remaining
        self._by_identity: dict[Identity, deque[_Stocked]] = {}
        # In the order of expiry. What was taken stays here until its turn.
        self._order: deque[_Stocked] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Return how many are held, expired ones that await their sweep included."""
        return self._count

    def free_capacity(self) -> int:
        """Return how many more can be added before the oldest is dropped."""
        self.sweep()
        return max(0, self.capacity - self._count)

    def next_expiry(self) -> float | None:
        """Return when the oldest one is too old, by the monotonic clock; ``None`` if empty."""
        return self._order[0].entry.monotonic_end - self._margin if self._order else None

    def add(self, entry: Entry) -> None:
        """Keep a token, in place of the oldest one if the stock is full."""
        self.sweep()
        while self._count >= self.capacity:
            self._drop_oldest()
        stocked = _Stocked(entry)
        self._order.append(stocked)
        self._by_identity.setdefault(entry.identity, deque()).append(stocked)
        self._count += 1

    def take(self, identity: Identity) -> Entry | None:
        """Remove and return a token of an identity, the oldest if it is usable."""
        same = self._by_identity.get(identity)
        if same is None:
            return None
        # If the oldest are dead, most are: then the newest is tried, and the rest is left to
        # later calls and sweeps.
        for pop in (*[same.popleft] * SWEPT_PER_INSERTION, same.pop):
            stocked = pop()
            self._mark_taken(stocked, same)
            if self._cache.is_usable(stocked.entry):
                return stocked.entry
            self.expired_unused += 1
            if not same:
                break
        return None

    def restock(self, entry: Entry) -> bool:
        """Make stock of a token whose callers have left: its key finds it no longer.

        Returns:
            Whether it is stock now: not if it was handed out, is too old, or was invalidated.
        """
        if entry.handed_out:
            return False
        self._cache.remove(entry)
        if not self._cache.is_usable(entry):
            return False
        self.add(entry)
        return True

    def sweep(self, at_most: int = SWEPT_PER_INSERTION) -> bool:
        """Drop expired tokens at the old end; return whether there may be more of them."""
        order = self._order
        for _ in range(min(at_most, len(order))):
            if not order[0].taken and self._cache.is_alive(order[0].entry):
                return False
            self._drop_oldest()
        return bool(order)

    def clear(self) -> None:
        """Forget everything."""
        self._by_identity.clear()
        self._order.clear()
        self._count = 0

    def _drop_oldest(self) -> None:
        stocked = self._order.popleft()
        if not stocked.taken:
            # The oldest of all is the oldest of its identity: whatever is taken leaves that queue.
            same = self._by_identity[stocked.entry.identity]
            same.popleft()
            self._mark_taken(stocked, same)
            self.expired_unused += 1

    def _mark_taken(self, stocked: _Stocked, same: deque[_Stocked]) -> None:
        stocked.taken = True
        self._count -= 1
        if not same:
            del self._by_identity[stocked.entry.identity]


class StockSweeper:
    """Drops stocked tokens soon after they expired, and reports how many once a second at most."""

    def __init__(self, stock: TokenStock, clock: Clock, observers: Observers) -> None:
        self._stock = stock
        self._clock = clock
        self._observers = observers
        self._timer: asyncio.TimerHandle | None = None
        self._reported = 0

    def schedule_sweep(self) -> None:
        """Sweep when the oldest token expires, unless that is scheduled already."""
        expiry = self._stock.next_expiry() if self._timer is None else None
        if expiry is not None:
            self._sweep_in(max(1.0, expiry - self._clock.monotonic()))

    def close(self) -> None:
        """Sweep no more, and report what was not reported yet."""
        if self._timer is not None:
            self._timer.cancel()
        self._report_expired()

    def _sweep_in(self, seconds: float) -> None:
        self._timer = call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        if self._stock.sweep(_SWEPT_AT_A_TIME):
            self._sweep_in(0.0)
            return
        self._report_expired()
        self.schedule_sweep()

    def _report_expired(self) -> None:
        count = self._stock.expired_unused - self._reported
        self._reported += count
        if count and self._observers:
            self._observers.tell(ExpiredUnused(count))
