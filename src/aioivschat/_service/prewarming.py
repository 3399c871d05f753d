"""Tokens without a caller: minted ahead of the doors, just in time.

Requests wait here, not at the limiter: a few at most stand in its queue, behind all live calls, and
a few are under way. There is one task for each account and region, and none for a token.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from aioivschat._clock import TICK_SECONDS, Clock
from aioivschat._contexts import start_task, time_limit
from aioivschat._models import TOKEN_LIFE_SECONDS, Priority, RoomArn, TokenRequest
from aioivschat._service.admission import NEVER, Call
from aioivschat._service.limiter import Limiter
from aioivschat._service.limiters import Limiters
from aioivschat._service.minting import Minter, TokenFlight
from aioivschat._service.pending import (
    CATCH_UP_SECONDS,
    PendingQueue,
    PendingRequest,
    PendingRequests,
)
from aioivschat._service.refusals import ENOUGH, FIRST_LOOK_SECONDS, Refusals
from aioivschat._service.signing_in import SignIns
from aioivschat._service.singleflight import FlightStopped
from aioivschat._service.stock import TokenStock
from aioivschat.errors import DeadlineExceeded, InvalidRequest, as_number, describe_number

_LEAD_SECONDS = 1.0
"""How long before the doors the last request is sent: its answer is there then, even after a
retry."""

_ANSWER_SECONDS = 0.05
"""How long before the doors nothing is sent any more: most answers would come after them."""

_USE_SECONDS = 1.0
"""How long after the doors even the oldest token can be handed out."""

_QUEUED_SECONDS = 0.1
"""How much of the limiter's pace may stand in its queue. A process gets a share of a fleet's quota
by how many wait there; for less than this, it would have to ask the engine too often."""

_JUST_BELOW_RATE = 1 - 1e-6
"""Stay just below the limiter's rate: otherwise it queues us, and a live call waits behind."""

_SHORT_SLEEP_SECONDS = 0.05
"""Up to here a plain sleep, which nothing can end early, costs less than waiting for changes."""

_POLL_SECONDS = 0.025
"""Poll interval for changes that have no event: requests sent, stock taken, callers gone."""

_READ_AHEAD = 1_000
"""Requests read ahead where their number does not matter, as there are no doors."""

_READ_AT_A_TIME = 64
"""Requests read before others have their turn on the event loop."""


@dataclass(frozen=True, slots=True)
class Prewarmed:
    """What came of :meth:`AsyncTokenService.prewarm`; each request is counted once.

    Args:
        minted: tokens that came; those that no caller wanted meanwhile are in the stock.
        failed: requests that failed, by the name of the error's class; ``DeadlineExceeded`` are
            those without an answer when the doors opened, whose tokens may still come into stock.
        served: requests that were left to a caller for the same, who came before their turn, or
            while they were asleep before a retry or under way at the doors.
        left_out: requests that were not sent, as their turn would have come after the doors, the
            stock was full, or their room or the account had been refused a handful of others.
    """

    minted: int
    failed: Mapping[str, int]
    served: int = 0
    left_out: int = 0


@dataclass(eq=False, kw_only=True)
class Prewarmer:
    """All that one service mints ahead.

    Args:
        min_remaining: seconds that a token must have left when it is handed out.
        max_connections: of a client; a fifth is left to live calls.
    """

    limiters: Limiters
    minter: Minter
    pending: PendingRequests
    sign_ins: SignIns
    stock: TokenStock
    clock: Clock
    min_remaining: float
    max_connections: int

    def __post_init__(self) -> None:
        self.longest_lead = TOKEN_LIFE_SECONDS - self.min_remaining - _USE_SECONDS
        self.max_under_way = max(1, self.max_connections * 4 // 5)
        self._runs: set[_RegionRun] = set()

    async def run(
        self,
        requests: Iterable[TokenRequest] | AsyncIterable[TokenRequest],
        doors: float | None,
        budget: float,
    ) -> Prewarmed:
        """Mint for requests; arguments are those of ``AsyncTokenService.prewarm``.

        Raises:
            InvalidRequest: one of them is out of its range.
            ServiceClosed: the service closes meanwhile.
        """
        if doors is not None and not 0 < as_number(doors) < math.inf:
            raise InvalidRequest("doors", "a number above 0 s, or None", describe_number(doors))
        if not 0 < as_number(budget) <= 1:
            raise InvalidRequest("budget", "a number above 0, at most 1", describe_number(budget))
        opening = NEVER if doors is None else self.clock.monotonic() + doors
        runs: dict[Limiter, _RegionRun] = {}
        refusals = Refusals()

        def drop_refused() -> None:
            for run in runs.values():
                run.drop_refused()

        # What is not there when the doors open is not waited for.
        reading = time_limit(doors if isinstance(requests, AsyncIterable) else None)
        try:
            try:
                async with reading:
                    async for request in _each(requests):
                        if not issubclass(type(request), TokenRequest):
                            found = type(request).__name__
                            raise InvalidRequest("requests", "of TokenRequest", found)
                        room = RoomArn.parse(request.room)
                        limiter = self.limiters.get_or_make(room)
                        run = runs.get(limiter)
                        if run is None:
                            run = _RegionRun(
                                self, room.region, limiter, budget, opening, refusals, drop_refused
                            )
                            runs[limiter] = run
                            self._runs.add(run)
                        await run.add(request, room)
            except TimeoutError:
                if not reading.expired():
                    raise
            for run in runs.values():
                await run.finish()
        finally:
            for run in runs.values():
                run.give_up()
            self._runs.difference_update(runs.values())
        return Prewarmed(
            minted=sum(run.minted for run in runs.values()),
            failed=dict(sum((run.failed for run in runs.values()), Counter[str]())),
            served=sum(run.queue.taken_back for run in runs.values()),
            left_out=sum(run.left_out for run in runs.values()),
        )

    @property
    def under_way(self) -> int:
        """How many are being minted ahead."""
        return sum(run.under_way for run in self._runs)

    def stop(self) -> None:
        """Start nothing more, as the service is closing."""
        for run in self._runs:
            run.stop()


class _RegionRun:
    """What one call of ``prewarm`` mints in one account and region, one after the other."""

    def __init__(
        self,
        prewarmer: Prewarmer,
        region: str,
        limiter: Limiter,
        budget: float,
        opening: float,
        refusals: Refusals,
        on_refusal: Callable[[], None],
    ) -> None:
        self.queue = PendingQueue(limiter, prewarmer.clock)
        self.minted = self.left_out = 0
        self.failed = Counter[str]()
        self._prewarmer = prewarmer
        self._region = region
        self._limiter = limiter
        self._budget = budget
        self._opening = opening
        self._refusals = refusals
        self._on_refusal = on_refusal
        self._begun = 0  # requests
        self._first_look_ends = NEVER
        self._last_turn = opening - _ANSWER_SECONDS
        self._under_way: dict[PendingRequest, asyncio.Future[None]] = {}
        self._unsent: deque[TokenFlight] = deque()
        self._is_complete = self._is_over = False
        self._failure: Exception | None = None  # what keeps the next request from being sent
        self._next_in_budget = prewarmer.clock.monotonic()
        self._changed = asyncio.Event()
        prewarmer.pending.queues.add(self.queue)
        self._task = start_task(self._mint_all(), lambda _: self.queue.has_capacity.set())

    @property
    def under_way(self) -> int:
        """How many are being minted."""
        return len(self._under_way)

    async def add(self, request: TokenRequest, room: RoomArn) -> None:
        """Take one more request, as soon as there is capacity for it."""
        # With doors, nobody waits here: the next one may be for another region.
        is_full = self._opening < NEVER and len(self.queue) >= self._prewarmer.stock.capacity
        while len(self.queue) >= _READ_AHEAD and self._opening == NEVER:
            self._check_task()
            self.queue.has_capacity.clear()
            await self.queue.has_capacity.wait()
        if self._is_over or is_full or self._refusals.is_refused(request.room):
            self.left_out += 1
            return
        self._check_task()
        call = Call(request, room, None, Priority.BACKGROUND, self._opening)
        self._prewarmer.pending.remember(self.queue.append(call))
        self._changed.set()

    async def finish(self) -> None:
        """Wait until all is minted that will be: nothing is added any more."""
        self._is_complete = True
        self._changed.set()
        await asyncio.wait((self._task,))
        self._check_task()

    def drop_refused(self) -> None:
        """Give up what would be refused and has not been sent."""
        for pending in (*self.queue, *self._under_way):
            flight = pending.flight
            is_sent = flight is not None and flight.sent > 0
            if is_sent or not self._refusals.is_refused(pending.call.request.room):
                continue
            self._prewarmer.pending.forget(pending)
            self.left_out += 1
            if flight is None:
                self.queue.drop(pending)
            else:
                self._under_way.pop(pending).cancel()
        self._changed.set()

    def stop(self) -> None:
        """Start nothing more."""
        self._task.cancel()

    def give_up(self) -> None:
        """Start nothing more; what was sent becomes stock, and the rest is given up."""
        self._task.cancel()
        for pending in (*self.queue, *self._under_way):
            self._prewarmer.pending.forget(pending)
        self._prewarmer.pending.queues.discard(self.queue)
        self._give_up_flights()

    def _give_up_flights(self) -> None:
        for waiter in self._under_way.values():
            waiter.cancel()

    def _check_task(self) -> None:
        if self._task.done():
            if self._task.cancelled():
                raise self._prewarmer.minter.lifecycle.explain_cancellation("prewarming")
            self._task.result()

    @property
    def _pace(self) -> float:
        return self._limiter.rate * self._budget * _JUST_BELOW_RATE

    async def _mint_all(self) -> None:
        """Mint one after the other, until all is done or the doors open."""
        seconds = self._opening - self._prewarmer.clock.monotonic()
        limit = time_limit(None if self._opening == NEVER else seconds)
        try:
            async with limit:
                while await self._wait_for_turn():
                    self._start_next()
                while self._under_way:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            if not limit.expired():
                raise
        self._leave_at_doors()

    def _leave_at_doors(self) -> None:
        """Count what has not come; what was sent becomes stock, or goes to its caller."""
        self._is_over = True
        unanswered = [one for one, waiter in self._under_way.items() if not waiter.done()]
        for pending in (*self.queue, *unanswered):
            self._prewarmer.pending.forget(pending)
            flight = pending.flight
            if flight is None or not flight.sent:
                self.left_out += 1
            elif flight.callers > 1:
                self.queue.note_taken_back()
            else:
                self.failed[DeadlineExceeded.__name__] += 1
        for pending in tuple(self.queue):
            self.queue.drop(pending)
        self._give_up_flights()

    async def _wait_for_turn(self) -> bool:
        """Wait until one more is to be minted; return whether there is one."""
        clock = self._prewarmer.clock
        while True:
            now = clock.monotonic()
            if now + TICK_SECONDS >= self._last_turn or (self._is_complete and not self.queue):
                return False
            sleeps_through = False
            if not self.queue:
                due = NEVER
            elif self._has_enough_under_way():
                due = now + _POLL_SECONDS
            else:
                due = max(self._next_in_budget, self._latest_begin())
                permit = max(due, self.queue.next_permit(now))
                if permit <= now + TICK_SECONDS:
                    is_ready = self._prewarmer.sign_ins.is_ready(self._region)
                    if self._failure is None and not is_ready:
                        await self._sign_in(now)
                        continue  # it may be somebody else's turn by now
                    # Lost time beyond that is not made up for.
                    earliest = now - CATCH_UP_SECONDS
                    self._next_in_budget = max(due, earliest) + 1 / self._pace
                    self.queue.use_permit(max(permit, earliest))
                    return True
                due = max(due, min(permit, now + _POLL_SECONDS))
                sleeps_through = due - now <= _SHORT_SLEEP_SECONDS
            due = min(due, self._last_turn)
            if sleeps_through:
                await clock.sleep(due - now)
                continue
            self._changed.clear()
            with suppress(TimeoutError):
                async with time_limit(None if due == NEVER else due - now):
                    await self._changed.wait()

    async def _sign_in(self, now: float) -> None:
        try:
            await self._prewarmer.sign_ins.wait(self._region, now, self._opening)
        except Exception as error:
            self._failure = error

    def _latest_begin(self) -> float:
        """Return the last moment from which those that wait can all be minted in time."""
        if self._opening == NEVER:
            return -NEVER
        takes = len(self.queue) / self._pace + _LEAD_SECONDS
        return self._opening - min(takes, self._prewarmer.longest_lead)

    def _has_enough_under_way(self) -> bool:
        """Tell whether enough is under way, in the limiter's queue or in stock."""
        unsent, prewarmer = self._unsent, self._prewarmer
        while unsent and (unsent[0].sent or unsent[0].done):
            unsent.popleft()
        if len(unsent) >= max(2.0, self._pace * _QUEUED_SECONDS):
            return True
        if self.under_way >= prewarmer.max_under_way or self._is_first_look():
            return True
        # With doors, a token beyond the stock's capacity would only push out another.
        if self._opening == NEVER or prewarmer.minter.stock_is_shared:
            return False
        return prewarmer.under_way >= prewarmer.stock.free_capacity()

    def _is_first_look(self) -> bool:
        """Tell whether as many are begun as should be before anything is known of their fate."""
        if self._begun < ENOUGH or self._refusals.has_served:
            return False
        return self._prewarmer.clock.monotonic() < self._first_look_ends

    def _start_next(self) -> None:
        """Start the flight of the next request, or count what keeps it from flying."""
        failure, self._failure = self._failure, None
        pending = self.queue.pop()
        prewarmer = self._prewarmer
        if not self._begun:
            self._first_look_ends = prewarmer.clock.monotonic() + FIRST_LOOK_SECONDS
        self._begun += 1
        prewarmer.pending.give_up_permits(self._limiter, to=self.queue)
        if len(self.queue) <= _READ_AHEAD // 2:
            self.queue.has_capacity.set()
        if failure is None:
            try:
                flight = prewarmer.minter.make_flight_ahead(pending.call, self._limiter)
            except Exception as error:
                failure = error
            else:
                pending.begin(flight)
                self._unsent.append(flight)
                self._under_way[pending] = prewarmer.minter.flights.attend(
                    flight, lambda failure: self._land(pending, flight, failure)
                )
                return
        self._settle(pending, failure)

    def _land(
        self, pending: PendingRequest, flight: TokenFlight, failure: BaseException | None
    ) -> None:
        del self._under_way[pending]
        # Retries count against the budget too.
        self._next_in_budget += max(0, flight.sent - 1) / self._pace
        if flight.superseded:
            self.queue.note_taken_back()
            self._changed.set()
        else:
            self._settle(pending, failure)

    def _settle(self, pending: PendingRequest, failure: BaseException | None) -> None:
        self._prewarmer.pending.forget(pending)
        room = pending.call.request.room
        if failure is None:
            self.minted += 1
            self._refusals.note_served(room)
        else:
            if isinstance(failure, FlightStopped):
                failure = self._prewarmer.minter.lifecycle.explain_cancellation("minting a token")
            self.failed[type(failure).__name__] += 1
            if self._refusals.note_failed(room, failure):
                self._on_refusal()
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
            if number % _READ_AT_A_TIME == 0:
                await asyncio.sleep(0)
