"""Tokens without a caller: minted ahead of the doors, just in time.

Requests wait here, not at the limiter: a few at most stand in its queue, behind all live calls, and
a few are under way. There is one task for each account and region, and none for a token.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aioivschat._aws.clients import ClientPool
from aioivschat._clock import TICK_SECONDS, Clock
from aioivschat._models import TOKEN_LIFE_SECONDS, Identity, Priority, RoomArn, TokenRequest
from aioivschat._service.fences import Fences
from aioivschat._service.limiter import Limiter
from aioivschat._service.minting import NEVER, Mint, Minter
from aioivschat._service.singleflight import FlightStopped
from aioivschat._service.stock import TokenStock
from aioivschat.errors import InvalidRequest, ServiceClosed

_LEAD = 1.0
"""Seconds before the doors by which the last request is sent: its answer is there then, though it
need a retry."""

_USE = 1.0
"""Seconds after the doors for which even the oldest token can be handed out."""

_QUEUED = 0.1
"""Seconds' worth of places in the limiter's queue. Of a fleet's quota a process gets a share by how
many wait there; for less than this, it would have to ask too often."""

_CATCH_UP = 0.05
"""Seconds of lost time that are made up for, as at the limiter."""

_A_TRIFLE_SLOWER = 1 - 1e-6
"""For a place taken at the limiter's very pace, rounding may make its permit due a moment later."""

_SHORT = 0.05
"""Seconds to sleep through, whatever changes meanwhile: not to listen for it is less work."""

_LOOK = 0.025
"""Seconds between two looks at what nobody tells of: what was sent or taken, and who has left."""

_READ_AHEAD = 1_000
"""Requests read ahead where their number does not matter, as there are no doors."""

_AT_A_TIME = 64
"""Requests read before others have their turn on the event loop."""


@dataclass(frozen=True, slots=True)
class Prewarmed:
    """What came of :meth:`AsyncTokenService.prewarm`; each request is counted once.

    Args:
        minted: tokens that came; those that no caller wanted meanwhile are in the stock.
        failed: requests that failed, by the name of the error's class.
        served: requests that were not sent, as a caller for the same came before their turn.
        left_out: requests that were not sent, as their turn would have come after the doors, or
            the stock was full.
    """

    minted: int
    failed: Mapping[str, int]
    served: int = 0
    left_out: int = 0


class _Seat:
    """A request to be minted ahead, and its flight once it is under way."""

    __slots__ = ("flight", "line", "request")

    def __init__(self, request: TokenRequest, line: _Line) -> None:
        self.request = request
        self.line = line
        self.flight: Mint | None = None


class Prewarmer:
    """All that one service mints ahead.

    Args:
        minter: mints.
        pool: the clients.
        stock: where the tokens go.
        fences: what was invalidated.
        clock: where the time comes from.
        min_remaining: seconds that a token must have left when it is handed out.
        max_connections: of a client; a fifth is left to live calls.
    """

    def __init__(
        self,
        minter: Minter,
        pool: ClientPool,
        stock: TokenStock,
        fences: Fences,
        clock: Clock,
        min_remaining: float,
        max_connections: int,
    ) -> None:
        self.minter = minter
        self.pool = pool
        self.stock = stock
        self.fences = fences
        self.clock = clock
        self.span = TOKEN_LIFE_SECONDS - min_remaining - _USE
        self.under_way_at_most = max(1, max_connections * 4 // 5)
        # By identity and in order: those under way, then those whose turn is to come.
        self._seats: dict[Identity, OrderedDict[_Seat, None]] = {}
        self._lines: set[_Line] = set()

    async def run(
        self,
        requests: Iterable[TokenRequest] | AsyncIterable[TokenRequest],
        limiter_of: Callable[[RoomArn], Limiter],
        doors: float | None,
        budget: float,
    ) -> Prewarmed:
        """Mint for requests; as :meth:`AsyncTokenService.prewarm`."""
        if doors is not None and not 0 < doors < math.inf:
            raise InvalidRequest("doors", "above 0 s, or None", f"{doors}")
        if not 0 < budget <= 1:
            raise InvalidRequest("budget", "above 0, at most 1", f"{budget}")
        opening = NEVER if doors is None else self.clock.monotonic() + doors
        lines: dict[Limiter, _Line] = {}
        # What is not there when the doors open is not waited for.
        reading = asyncio.timeout(doors if isinstance(requests, AsyncIterable) else None)
        try:
            try:
                async with reading:
                    async for request in _each(requests):
                        arn = RoomArn.parse(request.room)
                        limiter = limiter_of(arn)
                        line = lines.get(limiter)
                        if line is None:
                            line = _Line(self, arn.region, limiter, budget, opening)
                            lines[limiter] = line
                            self._lines.add(line)
                        await line.add(request)
            except TimeoutError:
                if not reading.expired():
                    raise
            for line in lines.values():
                await line.finish()
        finally:
            for line in lines.values():
                line.leave()
            self._lines.difference_update(lines.values())
        failed: dict[str, int] = {}
        for line in lines.values():
            for error, count in line.failed.items():
                failed[error] = failed.get(error, 0) + count
        return Prewarmed(
            minted=sum(line.minted for line in lines.values()),
            failed=failed,
            served=sum(line.served for line in lines.values()),
            left_out=sum(line.left_out for line in lines.values()),
        )

    @property
    def under_way(self) -> int:
        """How many are being minted ahead."""
        return sum(line.under_way for line in self._lines)

    def take_over(self, identity: Identity) -> Mint | None:
        """Find a flight under way that a caller may have."""
        seats = self._seats.get(identity)
        while seats:
            seat = next(iter(seats))
            flight = seat.flight
            if flight is None:
                break
            self.forget(seat)
            over = flight.done or flight.leaving
            if not over and not self.fences.is_fenced(flight.generation, identity):
                return flight
        return None

    def make_way(self, identity: Identity, limiter: Limiter) -> None:
        """Take note of a caller who needs a permit: one less is to be minted ahead for it, if any
        is, and whoever else is minted for waits for one permit more.
        """
        self.make_way_for(None, limiter)
        seats = self._seats.get(identity)
        if seats:
            seat = next(iter(seats))
            if seat.flight is None:
                seat.line.withdraw(seat)

    def make_way_for(self, starting: _Line | None, limiter: Limiter) -> None:
        """Leave a permit to a line, or to a caller, where others would take it."""
        for line in self._lines:
            if line is not starting:
                line.make_way(limiter)

    def remember(self, seat: _Seat) -> None:
        """Let callers find a seat."""
        self._seats.setdefault(seat.request.identity, OrderedDict())[seat] = None

    def forget(self, seat: _Seat) -> None:
        """Let nobody find a seat any more."""
        identity = seat.request.identity
        seats = self._seats.get(identity)
        if seats is not None:
            seats.pop(seat, None)
            if not seats:
                del self._seats[identity]

    def stop(self) -> None:
        """Start nothing any more, as the service is closing."""
        for line in self._lines:
            line.stop()


class _Line:
    """What one call of ``prewarm`` mints in one account and region, one after the other."""

    def __init__(
        self, ahead: Prewarmer, region: str, limiter: Limiter, budget: float, opening: float
    ) -> None:
        self.minted = self.served = self.left_out = 0
        self.failed: dict[str, int] = {}
        self._ahead = ahead
        self._region = region
        self._limiter = limiter
        self._budget = budget
        self._opening = opening
        self._waiting: OrderedDict[_Seat, None] = OrderedDict()
        self._under_way: dict[_Seat, asyncio.Future[None]] = {}
        self._unsent: deque[Mint] = deque()
        self._complete = self._closed = False
        # When the budget allows the next one, and when callers leave it a permit. Were the limiter
        # asked for more than its rate, it would give in bursts, and who came after one would wait.
        self._next = self._free = ahead.clock.monotonic()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.create_task(self._mint_all())
        self._task.add_done_callback(lambda _: self._room.set())

    @property
    def under_way(self) -> int:
        """How many are being minted."""
        return len(self._under_way)

    async def add(self, request: TokenRequest) -> None:
        """Take one more request, as soon as there is room for it."""
        # With doors, nobody waits here: the next one may be for another region.
        too_many = self._opening < NEVER and len(self._waiting) >= self._ahead.stock.capacity
        if self._closed or too_many:
            self.left_out += 1
            return
        while len(self._waiting) >= _READ_AHEAD and self._opening == NEVER:
            self._check_task()
            self._room.clear()
            await self._room.wait()
        self._check_task()
        seat = _Seat(request, self)
        self._waiting[seat] = None
        self._ahead.remember(seat)
        self._changed.set()

    async def finish(self) -> None:
        """Wait until all is minted that will be: nothing is added any more."""
        self._complete = True
        self._changed.set()
        await asyncio.wait((self._task,))
        self._check_task()

    def make_way(self, limiter: Limiter) -> None:
        """Leave one permit to a caller."""
        if limiter is self._limiter:
            now = self._ahead.clock.monotonic()
            self._free = max(self._free, now) + 1 / limiter.rate

    def withdraw(self, seat: _Seat) -> None:
        """Take a request back that has not had its turn: its caller has come."""
        self._ahead.forget(seat)
        del self._waiting[seat]
        self.served += 1
        self._room.set()

    def stop(self) -> None:
        """Start nothing any more."""
        self._task.cancel()

    def leave(self) -> None:
        """Start nothing any more; what was sent comes home as stock, and the rest is given up."""
        self._task.cancel()
        for seat in (*self._waiting, *self._under_way):
            self._ahead.forget(seat)
        for waiter in self._under_way.values():
            waiter.cancel()

    def _check_task(self) -> None:
        if self._task.done():
            if self._task.cancelled():
                raise ServiceClosed
            self._task.result()

    @property
    def _pace(self) -> float:
        return self._limiter.rate * self._budget * _A_TRIFLE_SLOWER

    async def _mint_all(self) -> None:
        ahead = self._ahead
        while await self._turn():
            failure = None
            if not ahead.pool.is_open(self._region):
                try:
                    await ahead.pool.open(self._region)
                except Exception as error:
                    failure = error
            if self._waiting:
                self._start(failure)
        self.left_out += len(self._waiting)
        for seat in self._waiting:
            ahead.forget(seat)
        self._waiting.clear()
        self._closed = True
        while self._under_way:
            self._changed.clear()
            await self._changed.wait()

    async def _turn(self) -> bool:
        """Wait until one more is to be minted; return whether there is one."""
        clock = self._ahead.clock
        while True:
            now = clock.monotonic()
            if now + TICK_SECONDS >= self._opening or (self._complete and not self._waiting):
                return False
            on_time = False
            if not self._waiting:
                due = NEVER
            elif self._crowded():
                due = now + _LOOK
            else:
                due = max(self._next, self._begin())
                free = max(due, self._free_at(now))
                if free <= now + TICK_SECONDS:
                    # Lost time beyond that is lost.
                    self._next = max(due, now - _CATCH_UP) + 1 / self._pace
                    self._free = max(free, now - _CATCH_UP) + 1 / self._limiter.rate
                    return True
                due = max(due, min(free, now + _LOOK))
                on_time = due - now <= _SHORT
            due = min(due, self._opening)
            if on_time:
                await clock.sleep(due - now)
                continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if due == NEVER else due - now):
                    await self._changed.wait()

    def _begin(self) -> float:
        """Return the last moment from which those that wait can all be minted in time."""
        if self._opening == NEVER:
            return -NEVER
        takes = len(self._waiting) / self._pace + _LEAD
        return self._opening - min(takes, self._ahead.span)

    def _free_at(self, now: float) -> float:
        """Return when there is a permit beside those of callers; some may have left without it."""
        if self._free > now + _CATCH_UP:
            wait = self._limiter.predicted_wait(Priority.BACKGROUND)
            self._free = min(self._free, now + wait + _CATCH_UP)
        return self._free

    def _crowded(self) -> bool:
        """Tell whether enough is under way, in the queue or in stock."""
        unsent, ahead = self._unsent, self._ahead
        while unsent and (unsent[0].sent or unsent[0].done):
            unsent.popleft()
        if len(unsent) >= max(2.0, self._pace * _QUEUED):
            return True
        if self.under_way >= ahead.under_way_at_most:
            return True
        # With doors, one for whom there is no room would only throw out another.
        kept_here = self._opening < NEVER and ahead.minter.tokens is None
        return kept_here and ahead.under_way >= ahead.stock.free_capacity()

    def _start(self, failure: Exception | None) -> None:
        seat, _ = self._waiting.popitem(last=False)
        self._ahead.make_way_for(self, self._limiter)
        if len(self._waiting) <= _READ_AHEAD // 2:
            self._room.set()
        if failure is None:
            try:
                flight = seat.flight = self._ahead.minter.new_flight(
                    seat.request, self._limiter, Priority.BACKGROUND, NEVER
                )
            except Exception as error:
                failure = error
            else:
                self._unsent.append(flight)
                self._under_way[seat] = self._ahead.minter.flights.attend(
                    flight, lambda failure: self._landed(seat, failure)
                )
                return
        self._settle(seat, failure)

    def _landed(self, seat: _Seat, failure: BaseException | None) -> None:
        del self._under_way[seat]
        if seat.flight is not None and seat.flight.sent > 1:
            # Its retries took of the budget too.
            self._next += (seat.flight.sent - 1) / self._pace
        self._settle(seat, failure)

    def _settle(self, seat: _Seat, failure: BaseException | None) -> None:
        self._ahead.forget(seat)
        if failure is None:
            self.minted += 1
        else:
            kind = ServiceClosed if isinstance(failure, FlightStopped) else type(failure)
            self.failed[kind.__name__] = self.failed.get(kind.__name__, 0) + 1
        self._changed.set()


async def _each(
    requests: Iterable[TokenRequest] | AsyncIterable[TokenRequest],
) -> AsyncIterator[TokenRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for number, request in enumerate(requests, 1):
            yield request
            if number % _AT_A_TIME == 0:
                await asyncio.sleep(0)
